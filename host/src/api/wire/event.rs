//! An event of `GET /events`.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use taxiway_job::JobId;

use crate::store;

/// An event as it is written: `{id, at, type, job_id, …}`, with the members of its type after the common ones.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a>(pub &'a store::Event);

impl Serialize for Event<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(Some(4 + event.data.len()))?;
        map.serialize_entry("id", &event.id)?;
        map.serialize_entry("at", &event.at)?;
        map.serialize_entry("type", &event.kind)?;
        map.serialize_entry("job_id", &event.job)?;
        for (name, value) in &event.data {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// What a client reads of an event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Heard {
    /// Grows with every event.
    pub id: u64,
    /// `job.queued`, `queue.paused` …
    #[serde(rename = "type")]
    pub kind: String,
    /// The job concerned.
    pub job_id: Option<JobId>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use taxiway_job::Time;

    use super::*;

    #[test]
    fn members_of_a_type_stand_beside_the_common_ones() {
        let event = store::Event {
            id: 7,
            at: Time::from_millis(0),
            kind: "queue.paused".into(),
            job: None,
            data: Map::from_iter([("by".to_owned(), json!("admin"))]),
        };
        let value = serde_json::to_value(Event(&event)).expect("JSON");
        let expected =
            json!({"id": 7, "at": "1970-01-01T00:00:00.000Z", "type": "queue.paused", "job_id": null, "by": "admin"});
        assert_eq!(value, expected);
        let heard: Heard = serde_json::from_value(value).expect("an event");
        assert_eq!(heard.kind, "queue.paused");
    }
}
