//! What the outbox needs of plugins, and the real ones behind it.

use async_trait::async_trait;
use taxiway_plugin_host::{CallError, Delivery, Hook, JobView, OutcomeView, PluginHost};
use uuid::Uuid;

use crate::store::{DeliveryId, NewDelivery};

/// The completion hooks.
#[async_trait]
pub trait CompletionHooks: Send + Sync {
    /// Returns once it is known which plugins are in force.
    async fn ready(&self);

    /// The names of the plugins that hear of the ends of jobs of this profile. Cheap.
    fn in_force(&self, profile: Option<&str>) -> Vec<String>;

    /// Tells one plugin of an end; none when it is not in force for such jobs.
    async fn complete(
        &self,
        plugin: &str,
        profile: Option<&str>,
        job: &JobView,
        outcome: &OutcomeView,
        delivery: &Delivery,
    ) -> Option<Result<(), CallError>>;
}

/// One delivery for each completion hook in force for jobs of this profile, to be stored with the end that they tell of.
#[must_use]
pub fn deliveries_for(hooks: &dyn CompletionHooks, profile: Option<&str>) -> Vec<NewDelivery> {
    let new = |plugin| NewDelivery { id: DeliveryId(Uuid::new_v4()), plugin };
    hooks.in_force(profile).into_iter().map(new).collect()
}

#[async_trait]
impl CompletionHooks for PluginHost {
    async fn ready(&self) {
        PluginHost::ready(self).await;
    }

    fn in_force(&self, profile: Option<&str>) -> Vec<String> {
        PluginHost::in_force(self, Hook::Complete, None, profile)
            .iter()
            .map(|plugin| plugin.name().to_owned())
            .collect()
    }

    async fn complete(
        &self,
        plugin: &str,
        profile: Option<&str>,
        job: &JobView,
        outcome: &OutcomeView,
        delivery: &Delivery,
    ) -> Option<Result<(), CallError>> {
        let in_force = PluginHost::in_force(self, Hook::Complete, None, profile);
        let plugin = in_force.into_iter().find(|candidate| candidate.name() == plugin)?;
        Some(plugin.complete(job, outcome, delivery).await.result)
    }
}
