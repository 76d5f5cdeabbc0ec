//! `defaults`: fills in what a configuration leaves out. It does only what its settings ask for, and what a job's
//! author wrote stays as it is.
//!
//! ```toml
//! bundled = "defaults"
//!
//! [settings]
//! output_dir = "/data/out/{job_id}"    # put at `output_key` where that is missing
//! seed_key = "/train/seed"             # a seed that the job's id determines, put there where it is missing
//!
//! [settings.defaults.train]            # merged into the configuration, key by key
//! batch_size = 8
//!
//! [settings.profiles.lora.defaults]    # for jobs of the profile `lora`, before the ones for all
//! rank = 16
//! ```

mod fill;
mod output_dir;
mod seed;
mod settings;

use taxiway_plugin::{Change, Context, HookError, Job, Metadata, Problems, Rewrite, Value, export, json, pointer};

use settings::Settings;

struct Defaults;

impl Rewrite for Defaults {
    fn rewrite(job: &Job, _context: &Context) -> Result<Option<Change>, HookError> {
        let settings: Settings = taxiway_plugin::settings()?;
        let plan = settings.plan_for(job.profile());
        let mut config = job.raw_config().clone();

        // The profile's own come first: what is filled in is not missing any more.
        for defaults in plan.defaults {
            fill::missing(&mut config, defaults);
        }
        if let Some(template) = plan.output_dir
            && (plan.output_overwrite || config.pointer(plan.output_key).is_none())
        {
            let directory = output_dir::expand(template, job)?;
            put(&mut config, plan.output_key, json!(directory));
        }
        if let Some(seed_key) = plan.seed_key
            && config.pointer(seed_key).is_none()
        {
            put(&mut config, seed_key, json!(seed::of_job(&job.id)));
        }

        Ok((config != *job.raw_config()).then(|| Change::new().config(config)))
    }
}

/// A configuration of another shape is left alone: whether that may run is for validators to say.
fn put(config: &mut Value, place: &str, value: Value) {
    if !pointer::set(config, place, value) {
        taxiway_plugin::warn!("cannot set {place}: something in the configuration that is no object is in its way");
    }
}

impl Metadata for Defaults {
    fn settings_schema() -> Option<Value> {
        Some(settings::schema())
    }

    fn check_settings(settings: &Value) -> Problems {
        settings::check(settings)
    }
}

export!(Defaults: Rewrite + Metadata);

#[cfg(test)]
mod tests;
