//! TLS for plugins' requests: the platform's trusted roots, or those of one file.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

/// Makes TLS connections. The roots are read at the first one.
pub struct Tls {
    roots: Roots,
    connector: OnceCell<TlsConnector>,
}

enum Roots {
    Platform,
    Own(RootCertStore),
}

/// Why `plugins.ca_file` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// It is not there or not readable.
    #[error("cannot read plugins.ca_file {path}: {source}; give a PEM file that the service may read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It holds no certificate that can be a root.
    #[error(
        "plugins.ca_file {path} holds no usable certificate ({reason}); give one or more CERTIFICATE blocks in PEM"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Tls {
    /// With the roots of the platform, or of `ca_file` alone.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn new(ca_file: Option<&Path>) -> Result<Tls, CaFileError> {
        let roots = match ca_file {
            None => Roots::Platform,
            Some(path) => Roots::Own(read_roots(path)?),
        };
        Ok(Tls { roots, connector: OnceCell::new() })
    }

    /// A handshake with `host`, a name or an address, over an open connection.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let connector = self.connector.get_or_try_init(|| self.make_connector()).await?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        connector.connect(name, stream).await.map_err(Error::Tls)
    }

    async fn make_connector(&self) -> Result<TlsConnector, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let config = match &self.roots {
            Roots::Own(store) => versions.with_root_certificates(store.clone()).with_no_client_auth(),
            Roots::Platform => {
                // Reads some hundred files.
                let verifier = tokio::task::spawn_blocking(move || rustls_platform_verifier::Verifier::new(provider))
                    .await
                    .map_err(|error| unusable(&error))?
                    .map_err(|error| unusable(&error))?;
                versions.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn unusable(error: &dyn std::fmt::Display) -> Error {
    tracing::error!(%error, "TLS for plugins is unusable: check the system's CA certificates, or set plugins.ca_file");
    Error::ConfigurationError
}

fn read_roots(path: &Path) -> Result<RootCertStore, CaFileError> {
    let text = std::fs::read(path).map_err(|source| CaFileError::Read { path: path.to_owned(), source })?;
    let wrong = |reason: String| CaFileError::Content { path: path.to_owned(), reason };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(wrong("no CERTIFICATE block".to_owned()));
    }
    Ok(store)
}
