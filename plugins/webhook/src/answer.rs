//! What the receiver's answer means for the delivery.

use std::time::Duration;

use jiff::fmt::rfc2822;
use taxiway_plugin::{HookError, http::Response};

/// A receiver cannot put a delivery off for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A delivery is settled by 200 to 299 and given up for 410 (Standard Webhooks, "Operational considerations"); every
/// other answer, redirects too, asks for another try.
pub fn judge(answer: &Response, now: u64) -> Result<(), HookError> {
    if answer.is_success() {
        return Ok(());
    }
    let status = answer.status;
    if status == 410 {
        return Err(HookError::permanent(
            "receiver-gone",
            "the receiver answered 410: it wants no more webhooks; remove this plugin's manifest or change `url`",
        ));
    }
    let error = HookError::transient("receiver-refused", format!("the receiver answered {status}{}", quote(answer)));
    Err(match answer.header("retry-after").and_then(|value| wait(value, now)) {
        Some(wait) => error.retry_after(wait),
        None => error,
    })
}

/// `Retry-After` (RFC 9110, 10.2.3) is a number of seconds or a date.
fn wait(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let at = rfc2822::parse(value).ok()?.timestamp().as_second();
            u64::try_from(at).ok()?.saturating_sub(now)
        }
    };
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// The first line of the answer's body, for whoever looks for the reason.
fn quote(answer: &Response) -> String {
    let text = answer.text();
    let line: String = text.trim().lines().next().unwrap_or_default().chars().take(200).collect();
    if line.is_empty() { String::new() } else { format!(": {line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Response { status, headers, body: body.into(), body_truncated: false }
    }

    #[test]
    fn success_settles_and_gone_ends_it() {
        for status in [200, 202, 204] {
            assert_eq!(judge(&answer(status, &[], ""), NOW), Ok(()));
        }
        assert_eq!(judge(&answer(410, &[], ""), NOW).map_err(|error| error.retry_after), Err(None));
    }

    #[test]
    fn every_other_answer_asks_for_another_try() {
        for status in [301, 400, 401, 404, 408, 429, 500, 503] {
            let error = judge(&answer(status, &[], "no\nmore"), NOW).expect_err("no success");
            assert!(error.retry_after.is_some(), "{status}");
            assert_eq!(error.message, format!("the receiver answered {status}: no"));
        }
    }

    #[test]
    fn the_receiver_says_how_long_to_wait() {
        for (value, seconds) in [
            ("120", 120),
            ("Tue, 14 Nov 2023 22:14:20 GMT", 60),
            ("Tue, 14 Nov 2000 22:14:20 GMT", 0),
            ("99999999999", 24 * 60 * 60),
        ] {
            let error = judge(&answer(429, &[("Retry-After", value)], ""), NOW).expect_err("no success");
            assert_eq!(error.retry_after, Some(Duration::from_secs(seconds)), "{value}");
        }
        let error = judge(&answer(429, &[("retry-after", "soon")], ""), NOW).expect_err("no success");
        assert_eq!(error.retry_after, Some(HookError::DEFAULT_RETRY_AFTER));
    }
}
