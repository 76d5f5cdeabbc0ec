//! `GET /api/v1/handovers`, `/deliveries`, `/audit`, `/profiles`, and `POST /api/v1/deliveries/{id}/redeliver`, `POST /api/v1/gc`

use axum::Json;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use taxiway_job::Time;
use uuid::Uuid;

use super::super::answer::Refused;
use super::super::gate::Caller;
use super::super::{Api, State, submission, wire};
use super::jobs::{self, LIMIT, MOST};
use crate::store::{Change, Cursor, Delivery, DeliveryFilter, DeliveryId, StoreError};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Paging {
    limit: Option<usize>,
    cursor: Option<String>,
}

fn limit(asked: Option<usize>) -> Result<usize, Refused> {
    let limit = asked.unwrap_or(LIMIT);
    if (1..=MOST).contains(&limit) {
        return Ok(limit);
    }
    Err(Refused::invalid_request(format!("limit is {limit}: it goes from 1 to {MOST}")))
}

fn not_ours() -> Refused {
    Refused::invalid_request("the cursor is not one of ours: send `next_cursor` of the page before")
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Last {
    limit: Option<usize>,
}

pub(super) async fn handovers(api: State, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let last: Last = submission::parameters(query.as_deref())?;
    let found = api.service.store.handovers(limit(last.limit)?).await?;
    let items = found.into_iter().map(wire::HandoverItem::from).collect();
    Ok(Json(wire::Page { items, next_cursor: None }).into_response())
}

pub(super) async fn audit(api: State, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let paging: Paging = submission::parameters(query.as_deref())?;
    let before = paging.cursor.map(|cursor| cursor.parse().map_err(|_| not_ours())).transpose()?;
    let page = api.service.store.audit(before, limit(paging.limit)?).await?;
    let items = page.items.into_iter().map(wire::AuditItem::from).collect();
    Ok(Json(wire::Page { items, next_cursor: page.next.map(|Cursor(id)| id.to_string()) }).into_response())
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Deliveries {
    status: Option<String>,
    job_id: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) async fn deliveries(api: State, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let asked: Deliveries = submission::parameters(query.as_deref())?;
    let status = asked.status.map(|status| {
        let said = || format!("status is `{status}`: use waiting, delivered or dead");
        status.parse().map_err(|()| Refused::invalid_request(said()))
    });
    let filter = DeliveryFilter {
        status: status.transpose()?,
        job: asked.job_id.map(|id| jobs::parse_id(&id)).transpose()?,
        before: asked.cursor.map(|cursor| position(&cursor).ok_or_else(not_ours)).transpose()?,
        limit: limit(asked.limit)?,
    };
    let (found, more) = api.service.store.deliveries(filter).await?;
    let next_cursor = found.last().filter(|_| more).map(|last| format!("{}.{}", last.created_at.as_millis(), last.id));
    let items = found.into_iter().map(wire::DeliveryItem::from).collect();
    Ok(Json(wire::Page { items, next_cursor }).into_response())
}

fn position(cursor: &str) -> Option<(Time, DeliveryId)> {
    let (millis, id) = cursor.split_once('.')?;
    Some((Time::from_millis(millis.parse().ok()?), DeliveryId(Uuid::try_parse(id).ok()?)))
}

/// Makes a delivery once more, whatever became of it: its id stays, by which its receiver knows it.
pub(super) async fn redeliver(api: State, caller: Caller, Path(id): Path<String>) -> Result<Response, Refused> {
    let id =
        Uuid::try_parse(&id).map(DeliveryId).map_err(|_| Refused::not_found(format!("`{id}` is no delivery's id")))?;
    found(&api, id).await?;
    let change = Change::Redeliver { delivery: id, at: Time::now(), by: caller.name.to_string() };
    match api.service.store.commit(vec![change]).await {
        // Its job was removed in this very moment, and it with it: the look below says so.
        Ok(()) | Err(StoreError::Conflict(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Json(wire::DeliveryItem::from(found(&api, id).await?)).into_response())
}

async fn found(api: &Api, id: DeliveryId) -> Result<Delivery, Refused> {
    let delivery = api.service.store.delivery(id).await?;
    delivery.ok_or_else(|| Refused::not_found(format!("there is no delivery {id}")))
}

/// The profiles, without what is secret in their environments.
pub(super) async fn profiles(api: State) -> Response {
    let item = |(name, profile): (&String, &crate::config::Profile)| {
        let mut item = serde_json::Map::from_iter([("name".to_owned(), Value::from(name.as_str()))]);
        if let Ok(Value::Object(fields)) = serde_json::to_value(profile) {
            item.extend(fields);
        }
        item
    };
    let items: Vec<_> = api.service.settings.config.profiles.iter().map(item).collect();
    Json(wire::Page { items, next_cursor: None }).into_response()
}

/// Removes now what was kept long enough.
pub(super) async fn collect(api: State, caller: Caller) -> Result<Response, Refused> {
    let removed = api.service.retention.collect().await?;
    // After it: the trail's own oldest rows may have gone.
    api.service.store.commit(vec![Change::Collected { at: Time::now(), by: caller.name.to_string() }]).await?;
    Ok(Json(removed).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_deliveries_is_a_moment_and_an_id() {
        let id = Uuid::from_u128(7);
        assert_eq!(position(&format!("12.{id}")), Some((Time::from_millis(12), DeliveryId(id))));
        for wrong in ["", "12", "x.y", "12.7"] {
            assert_eq!(position(wrong), None, "{wrong}");
        }
    }
}
