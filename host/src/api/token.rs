//! Access tokens: the one that the first start makes, and finding the owner of one that a request carries.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use taxiway_job::Time;

use super::gate::Caller;
use crate::store::{Change, NewToken, Scope, Store, StoreError};

/// Marks a token as ours, for people and for scanners of leaked secrets.
const PREFIX: &str = "taxiway_";

/// Why there is no administrator's token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("cannot {doing} the administrator's token in {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else may have written it.
    #[error(
        "the administrator's token in {} is not this user's alone to write: delete the file, and the next start makes a new token",
        path.display()
    )]
    NotOurs {
        /// Which.
        path: PathBuf,
    },
    /// The system has no random numbers to give.
    #[error("cannot make the administrator's token: {0}")]
    Random(getrandom::Error),
    /// The store does not take it.
    #[error("cannot store the administrator's token: {0}")]
    Store(#[from] StoreError),
}

/// Makes the administrator's token at the first start, and keeps the store in step with the file: a new file, or one that was
/// put back, is what counts.
///
/// # Errors
/// When the file or the store cannot be read or written.
pub async fn ensure_admin_token(store: &Store, file: &Path) -> Result<(), TokenError> {
    let failed = |doing| move |source| TokenError::File { doing, path: file.to_owned(), source };
    let token = match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => {
            keep_private(file)?;
            text.trim().to_owned()
        }
        Ok(_) => make(file)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(file)?,
        Err(error) => return Err(failed("read")(error)),
    };
    let sha256 = hash(&token);
    if store.token_by_hash(sha256).await?.is_none() {
        let token = NewToken { name: "admin".to_owned(), scope: Scope::Admin, sha256, at: Time::now() };
        store.commit(vec![Change::Token(token)]).await?;
    }
    Ok(())
}

/// Refuses a token that others could have written, and hides one that they could read.
fn keep_private(file: &Path) -> Result<(), TokenError> {
    let failed = |source| TokenError::File { doing: "keep for its user alone", path: file.to_owned(), source };
    let metadata = std::fs::metadata(file).map_err(failed)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(TokenError::NotOurs { path: file.to_owned() });
    }
    if metadata.mode() & 0o044 != 0 {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(())
}

/// A new token in the file, whole or not at all.
fn make(file: &Path) -> Result<String, TokenError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(TokenError::Random)?;
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let write = || {
        let partial = file.with_extension("partial");
        let mut written =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        writeln!(written, "{token}")?;
        written.sync_all()?;
        std::fs::rename(&partial, file)?;
        std::fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|source| TokenError::File { doing: "write", path: file.to_owned(), source })?;
    Ok(token)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Tokens that have been found good, so that a request costs no query. It grows with the tokens that exist, not with those
/// that are tried.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    known: RwLock<HashMap<[u8; 32], Caller>>,
}

impl Tokens {
    /// The owner of a token. Only hashes are compared, so that the time it takes tells nothing about any token.
    pub(super) async fn find(&self, token: &str, store: &Store) -> Result<Option<Caller>, StoreError> {
        let sha256 = hash(token);
        if let Some(caller) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&sha256) {
            return Ok(Some(caller.clone()));
        }
        let Some(found) = store.token_by_hash(sha256).await? else { return Ok(None) };
        let caller = Caller { name: found.name.into(), scope: found.scope };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(sha256, caller.clone());
        Ok(Some(caller))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn the_first_start_makes_a_token_for_its_owner_alone_and_later_ones_keep_it() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(&place.path().join("taxiway.db")).expect("a store");
        let file = place.path().join("token");
        ensure_admin_token(&store, &file).await.expect("a token");
        assert_eq!(std::fs::metadata(&file).expect("metadata").mode() & 0o777, 0o600);
        let token = std::fs::read_to_string(&file).expect("a file");
        ensure_admin_token(&store, &file).await.expect("the same token");
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), token);

        let tokens = Tokens::default();
        let caller = tokens.find(token.trim(), &store).await.expect("an answer").expect("an owner");
        assert_eq!((&*caller.name, caller.scope), ("admin", Scope::Admin));
        assert!(tokens.find("taxiway_wrong", &store).await.expect("an answer").is_none());
    }

    #[tokio::test]
    async fn a_token_that_others_could_read_is_hidden_and_one_that_they_could_write_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(&place.path().join("taxiway.db")).expect("a store");
        let file = place.path().join("token");
        ensure_admin_token(&store, &file).await.expect("a token");
        let set =
            |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("its mode is set");
        set(0o644);
        ensure_admin_token(&store, &file).await.expect("the same token");
        assert_eq!(std::fs::metadata(&file).expect("metadata").mode() & 0o777, 0o600);
        set(0o622);
        let refused = ensure_admin_token(&store, &file).await.expect_err("refused");
        assert!(matches!(refused, TokenError::NotOurs { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_new_file_takes_the_place_of_the_old_token() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(&place.path().join("taxiway.db")).expect("a store");
        let file = place.path().join("token");
        ensure_admin_token(&store, &file).await.expect("a token");
        let old = std::fs::read_to_string(&file).expect("a file");
        std::fs::remove_file(&file).expect("removed");
        ensure_admin_token(&store, &file).await.expect("another token");
        assert!(Tokens::default().find(old.trim(), &store).await.expect("an answer").is_none());
    }
}
