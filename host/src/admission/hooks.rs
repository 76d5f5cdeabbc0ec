//! What admission needs of plugins.

use async_trait::async_trait;
use taxiway_plugin_host::{Called, Context, Hook, JobView, Mode, OnError, Problem, Rewritten, Stage};

/// The plugins, as admission sees them.
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Returns once it is known which plugins are in force: at once, but for the first moments of the service.
    async fn ready(&self);

    /// The plugins with this hook that see jobs of this profile at this stage, in the order of their calls. Cheap.
    fn in_force(&self, hook: Hook, stage: Stage, profile: Option<&str>) -> Vec<Box<dyn Guest>>;
}

/// One plugin in force.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Its version, as it says itself.
    fn version(&self) -> &str;
    /// SHA-256 of its component, in hexadecimal.
    fn sha256(&self) -> &str;
    /// Whether what it says counts.
    fn mode(&self) -> Mode;
    /// What its failure means for the job.
    fn on_error(&self) -> OnError;
    /// What should the job's configuration become?
    async fn rewrite(&self, job: &JobView, context: &Context) -> Called<Option<Rewritten>>;
    /// May the job run?
    async fn validate(&self, job: &JobView, context: &Context) -> Called<Vec<Problem>>;
}
