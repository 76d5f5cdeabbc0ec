impl Validate for Plugin {
    fn validate(job: &Job, _context: &Context) -> Result<Problems, ValidateError> {
        let settings: Settings = settings()?;
        let mut problems = Problems::new();
        for key in &settings.required {
            if job.raw_config().get(key).is_none() {
                problems
                    .error(format!("/{key}"), "missing-key", format!("`{key}` is missing"))
                    .help(format!("set `{key}` in the configuration"));
            }
        }
        Ok(problems)
    }
}
