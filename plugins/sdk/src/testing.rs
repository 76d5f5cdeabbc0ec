//! The server's place in native tests of a plugin.
//!
//! ```
//! use taxiway_plugin::{http, json, settings, testing::Host};
//!
//! #[derive(serde::Deserialize)]
//! struct Settings {
//!     url: String,
//! }
//!
//! let host = Host::new()
//!     .settings(json!({"url": "https://example.org"}))
//!     .secret("token", "s3cret")
//!     .http(|request| {
//!         assert_eq!(request.url, "https://example.org");
//!         Ok(http::Response { status: 204, ..Default::default() })
//!     });
//! let status = host.run(|| {
//!     let settings: Settings = settings().unwrap();
//!     http::get(settings.url).send().unwrap().status
//! });
//! assert_eq!(status, 204);
//! ```

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use serde_json::Value;

use crate::{
    Level,
    http::{Error, Request, Response},
};

type Respond = Rc<dyn Fn(&Request) -> Result<Response, Error>>;

/// What a plugin under test finds around it. Without [`http`](Self::http) every request is denied, as in a server that
/// grants nothing.
#[derive(Clone, Default)]
pub struct Host {
    settings: String,
    secrets: BTreeMap<String, String>,
    respond: Option<Respond>,
    lines: Rc<RefCell<Vec<(Level, String)>>>,
}

thread_local! {
    static CURRENT: RefCell<Host> = RefCell::new(Host::default());
}

impl Host {
    /// Grants nothing, and has no settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the plugin's settings.
    #[must_use]
    pub fn settings(mut self, settings: Value) -> Self {
        self.settings = settings.to_string();
        self
    }

    /// Grants a secret.
    #[must_use]
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// Answers the plugin's HTTP requests.
    #[must_use]
    pub fn http(mut self, respond: impl Fn(&Request) -> Result<Response, Error> + 'static) -> Self {
        self.respond = Some(Rc::new(respond));
        self
    }

    /// Runs a test's code in this surrounding, on this thread.
    pub fn run<T>(&self, body: impl FnOnce() -> T) -> T {
        /// Puts back what was there, also when the test fails.
        struct Restore(Host);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(std::mem::take(&mut self.0));
            }
        }
        let _restore = Restore(CURRENT.replace(self.clone()));
        body()
    }

    /// What the plugin logged so far.
    pub fn lines(&self) -> Vec<(Level, String)> {
        self.lines.borrow().clone()
    }
}

pub(crate) fn send(request: &Request) -> Result<Response, Error> {
    let respond = CURRENT.with_borrow(|host| host.respond.clone());
    match respond {
        Some(respond) => respond(request),
        None => Err(Error::Denied { url: request.url.clone() }),
    }
}

/// The functions of the `host` interface, natively.
pub(crate) mod server {
    use super::CURRENT;
    pub(crate) use crate::Level;

    pub(crate) fn settings() -> String {
        CURRENT.with_borrow(|host| host.settings.clone())
    }

    pub(crate) fn secret(name: &str) -> Option<String> {
        CURRENT.with_borrow(|host| host.secrets.get(name).cloned())
    }

    pub(crate) fn log(level: Level, message: &str) {
        CURRENT.with_borrow(|host| host.lines.borrow_mut().push((level, message.to_owned())));
    }
}
