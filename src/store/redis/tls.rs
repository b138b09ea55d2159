//! TLS: the trusted authorities, the client certificate, and why handshakes fail.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore,
};

use crate::store::address::ConnectError;
use crate::store::dial::is_end;

/// The application's TLS settings. By default, the store trusts the authorities that the system trusts,
/// presents no client certificate, and expects a certificate for the host name.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    pub(super) authority: Option<Pem>,
    pub(super) client: Option<Client>,
    pub(super) server_name: Option<String>,
}

/// The client certificate and its key.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
}

/// The source of certificates or of a key.
#[derive(Clone)]
pub(super) enum Pem {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

impl Tls {
    /// Reads the TLS options from an address.
    pub(super) fn of_options(options: Vec<(String, String)>) -> Result<Self, ConnectError> {
        let mut tls = Self::default();
        let (mut certificate, mut key) = (None, None);
        for (name, value) in options {
            match name.as_str() {
                "cacert" => tls.authority = Some(Pem::File(value.into())),
                "cert" => certificate = Some(Pem::File(value.into())),
                "key" => key = Some(Pem::File(value.into())),
                _ => tls.server_name = Some(value),
            }
        }
        tls.client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Client { certificate, key }),
            (None, None) => None,
            _ => {
                return Err(ConnectError::address(
                    "one of the options cert and key is missing; a client certificate needs both",
                ));
            }
        };
        Ok(tls)
    }

    /// Checks that all settings can be used now.
    pub(super) fn check(&self) -> Result<(), ConnectError> {
        let name = self.server_name.as_deref().map_or(Ok(()), |name| server_name(name).map(drop));
        name.and_then(|()| self.config().map(drop)).map_err(ConnectError::tls)
    }

    /// Performs the TLS handshake and verifies the server's certificate. The error says why the handshake
    /// failed.
    pub(super) async fn encrypt(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = server_name(self.server_name.as_deref().unwrap_or(host))?;
        // Files are read for each connection, so that renewed files take effect. They are read in a blocking
        // task.
        let tls = self.clone();
        let config = spawn_blocking(move || tls.config()).await.map_err(|error| error.to_string());
        let connector = TlsConnector::from(Arc::new(config??));
        connector.connect(name, stream).await.map_err(|error| {
            if is_end(&error) {
                "the server hung up during the TLS handshake; if it does not speak TLS, write redis:// in \
                 place of rediss:// in the address"
                    .to_owned()
            } else {
                reason(&error)
            }
        })
    }

    /// Returns the client certificate, in DER format, if one is configured and can be read.
    pub(super) async fn own_certificate(&self) -> Option<Vec<u8>> {
        let Client { certificate, .. } = self.client.clone()?;
        let read = spawn_blocking(move || certificate.certificates("the client's certificate"));
        // If the certificate cannot be read, connecting fails with an error that says so.
        Some(read.await.ok()?.ok()?.first()?.to_vec())
    }

    /// Reads all files and creates the configuration.
    ///
    /// The configuration names the cryptography provider explicitly. The default provider of the process may
    /// be missing or ambiguous, in which case rustls would panic.
    fn config(&self) -> Result<ClientConfig, String> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = config.with_root_certificates(match &self.authority {
            Some(authority) => authority.roots()?,
            None => system_roots()?,
        });
        let Some(Client { certificate, key }) = &self.client else {
            return Ok(config.with_no_client_auth());
        };
        let chain = certificate.certificates("the client's certificate")?;
        config.with_client_auth_cert(chain, key.private_key()?).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("the key from {key} does not belong to the certificate from {certificate}")
            }
            error => format!("the certificate from {certificate} and the key from {key}: {error}"),
        })
    }
}

/// Returns the certificate that the server presented, in DER format.
pub(super) fn certificate(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        "the server name for TLS (tls_server_name, or sni in the address) is neither a host name nor an IP \
         address"
            .to_owned()
    })
}

/// Returns the authorities that the system trusts.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let reasons: Vec<_> = found.errors.iter().map(|error| format!(": {error}")).collect();
    Err(format!(
        "the system trusts no certificates{}; install its ca-certificates, or name a CA \
         (tls_ca_file, or cacert in the address)",
        reasons.concat()
    ))
}

impl Pem {
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("the CA's certificate")? {
            roots
                .add(certificate)
                .map_err(|error| format!("the CA's certificate from {self}: {error}"))?;
        }
        Ok(roots)
    }

    /// Reads the certificates. Fails if there is none.
    fn certificates(&self, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
        let text = self.read(what)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => {
                Err(format!("{what}: {self} has no certificate in PEM format"))
            }
            Ok(certificates) => Ok(certificates),
            // The parser's error would quote what it has read.
            Err(_) => Err(format!("{what}: {self} is not valid PEM")),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let what = "the client's key";
        PrivateKeyDer::from_pem_slice(&self.read(what)?).map_err(|error| match error {
            PemError::NoItemsFound => {
                format!("{what}: {self} has no unencrypted private key in PEM format")
            }
            _ => format!("{what}: {self} is not valid PEM"),
        })
    }

    fn read(&self, what: &str) -> Result<Arc<[u8]>, String> {
        match self {
            Self::File(path) => match fs::read(path) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(format!("{what}: {self} cannot be read: {error}")),
            },
            Self::Bytes(bytes) => Ok(Arc::clone(bytes)),
        }
    }
}

/// Prints where the data comes from, but none of its content.
impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The "path" may be a key that was given by mistake.
            Self::File(path) if path.to_string_lossy().contains("-----") => {
                f.write_str("a file whose name is PEM text")
            }
            Self::File(path) => path.display().fmt(f),
            Self::Bytes(_) => f.write_str("the given text"),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Describes why a connection failed and, if TLS was the reason, which setting to change.
pub(super) fn reason(error: &io::Error) -> String {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, UnknownCA, UnsupportedCertificate,
    };
    use CertificateError::{BadSignature, NotValidForName, NotValidForNameContext, UnknownIssuer};

    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref()) else {
        return error.to_string();
    };
    let remedy = match cause {
        Error::InvalidMessage(_) => {
            return "the server does not speak TLS there: use redis://".to_owned();
        }
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "; give the server a certificate for that name, or name the one to expect (tls_server_name, \
             or sni in the address); a node of a cluster announces its name if cluster-announce-hostname \
             is set"
        }
        // rustls reports a bad signature if it trusts a different CA of the same name.
        Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "; if the server's certificate is right, name its CA (tls_ca_file, or cacert in the address)"
        }
        Error::AlertReceived(CertificateRequired) => {
            "; the server wants a client certificate (tls_client_files, or cert and key in the address)"
        }
        Error::AlertReceived(
            BadCertificate
            | CertificateExpired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | UnknownCA
            | UnsupportedCertificate,
        ) => "; the server does not accept the client certificate",
        _ => "",
    };
    format!("the TLS handshake failed: {cause}{remedy}")
}
