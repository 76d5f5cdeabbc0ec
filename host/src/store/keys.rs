//! Requests that were accepted under an Idempotency-Key, and what they came to.

use rusqlite::{Connection, OptionalExtension, params};
use taxiway_job::Time;

use super::{Store, StoreError};

/// A request to be remembered, in the same transaction as what it asked for.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Whose key it is: the name of a token, or the user of the unix socket.
    pub owner: String,
    /// The key.
    pub key: String,
    /// SHA-256 of the whole request.
    pub request: [u8; 32],
    /// What the request came to, as its asker will want to read it again.
    pub answer: String,
    /// When.
    pub at: Time,
}

/// A request that was accepted under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// SHA-256 of the whole request.
    pub request: [u8; 32],
    /// What it came to.
    pub answer: String,
}

impl Store {
    /// The request that was accepted under this key of this owner.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn request_of_key(&self, owner: &str, key: &str) -> Result<Option<KnownKey>, StoreError> {
        let (owner, key) = (owner.to_owned(), key.to_owned());
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT request, answer FROM idempotency_keys WHERE owner = ?1 AND key = ?2")?;
            let known = statement.query_row(params![owner, key], |row| {
                Ok(KnownKey { request: row.get("request")?, answer: row.get("answer")? })
            });
            Ok(known.optional()?)
        })
        .await
    }
}

pub(super) fn remember(db: &Connection, new: &NewKey) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO idempotency_keys (owner, key, request, answer, at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![new.owner, new.key, new.request, new.answer, new.at.as_millis()])?;
    Ok(())
}
