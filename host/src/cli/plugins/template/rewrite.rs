impl Rewrite for Plugin {
    /// Fills in only what is missing, so that rewriting twice changes nothing more.
    fn rewrite(job: &Job, _context: &Context) -> Result<Option<Change>, HookError> {
        let settings: Settings = settings()?;
        let mut config: Map<String, Value> = job.config()?;
        let missing: Vec<_> = settings.defaults.into_iter().filter(|(key, _)| !config.contains_key(key)).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        config.extend(missing);
        Ok(Some(Change::new().config(Value::Object(config))))
    }
}
