impl Complete for Plugin {
    /// Called at least once for each end: the receiver tells a repetition by the delivery's id.
    fn completed(job: &Job, outcome: &Outcome, delivery: &Delivery) -> Result<(), HookError> {
        let settings: Settings = settings()?;
        let answer = http::post(settings.url)
            .header("idempotency-key", &delivery.id)
            .json(&json!({"job": job.id, "end": outcome.end.as_str(), "failure": outcome.failure}))
            .send()?;
        if answer.is_success() {
            return Ok(());
        }
        Err(HookError::transient("not-taken", format!("the receiver answered {}", answer.status)))
    }
}
