//! The real plugins behind [`Hooks`].

use async_trait::async_trait;
use taxiway_plugin_host::{
    Called, Context, Hook, JobView, Mode, OnError, Plugin, PluginHost, Problem, Rewritten, Stage,
};

use super::hooks::{Guest, Hooks};

#[async_trait]
impl Hooks for PluginHost {
    async fn ready(&self) {
        PluginHost::ready(self).await;
    }

    fn in_force(&self, hook: Hook, stage: Stage, profile: Option<&str>) -> Vec<Box<dyn Guest>> {
        // Only validators choose their stages: rewriters are called at submission, whatever their manifest says.
        let stage = (hook == Hook::Validate).then_some(stage);
        let boxed = |plugin| Box::new(plugin) as Box<dyn Guest>;
        PluginHost::in_force(self, hook, stage, profile).into_iter().map(boxed).collect()
    }
}

#[async_trait]
impl Guest for Plugin {
    fn name(&self) -> &str {
        Plugin::name(self)
    }

    fn version(&self) -> &str {
        Plugin::version(self)
    }

    fn sha256(&self) -> &str {
        Plugin::sha256(self)
    }

    fn mode(&self) -> Mode {
        Plugin::mode(self)
    }

    fn on_error(&self) -> OnError {
        Plugin::on_error(self)
    }

    async fn rewrite(&self, job: &JobView, context: &Context) -> Called<Option<Rewritten>> {
        Plugin::rewrite(self, job, context).await
    }

    async fn validate(&self, job: &JobView, context: &Context) -> Called<Vec<Problem>> {
        Plugin::validate(self, job, context).await
    }
}
