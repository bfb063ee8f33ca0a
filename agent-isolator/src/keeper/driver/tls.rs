//! TLS to plugins: what a specification's `TLSConfig` says, and what comes of it for one connection.
//!
//! Nothing here is the process's: neither a provider of cryptography nor roots of trust are installed, so that nobody else who
//! uses TLS in it is touched. All files are read anew for each connection, so that renewed certificates count at once.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use serde_json::Value;

use super::answer::field;
use super::files;

/// Where a host has the certificates that it trusts: of Debian, of Red Hat, of SUSE, of Alpine. The first that is there.
const HOSTS_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS 1.3, as Go numbers it.
const GO_TLS13: u64 = 0x0304;

/// A `TLSConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// `InsecureSkipVerify`: whoever answers is believed to be the plugin.
    insecure: bool,
    /// `CAFile`: whom alone to trust; without it those whom the host trusts.
    roots: Option<PathBuf>,
    /// `CertFile` and `KeyFile`: who this host is.
    identity: Option<(PathBuf, PathBuf)>,
    /// `MinVersion`: not even TLS 1.2.
    only_13: bool,
}

impl Tls {
    /// Reads it, as Go would.
    ///
    /// # Errors
    /// A sentence that holds none of the values but paths.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        if !given.is_object() {
            return Err("its TLSConfig is no object".into());
        }
        let given = |name: &str| field(given, name).filter(|value| !value.is_null());
        let path = |name: &str| match given(name).map(Value::as_str) {
            None | Some(Some("")) => Ok(None),
            Some(None) => Err(format!("its TLSConfig's {name} is no text")),
            Some(Some(path)) if !path.starts_with('/') => {
                // Docker takes it to be relative to where its daemon was started.
                Err(format!("its TLSConfig's {name} is {path:?}, which is no absolute path"))
            }
            Some(Some(path)) => Ok(Some(PathBuf::from(path))),
        };
        let insecure = match given("InsecureSkipVerify").map(Value::as_bool) {
            None => false,
            Some(Some(insecure)) => insecure,
            Some(None) => return Err("its TLSConfig's InsecureSkipVerify is neither true nor false".into()),
        };
        let only_13 = match given("MinVersion").map(Value::as_u64) {
            None | Some(Some(0 | 0x0303)) => false,
            Some(Some(GO_TLS13)) => true,
            Some(_) => {
                return Err("its TLSConfig's MinVersion is neither 771 (TLS 1.2) nor 772 (TLS 1.3)".into());
            }
        };
        if given("Passphrase").is_some_and(|phrase| phrase != "") {
            return Err("its TLSConfig has a Passphrase: only keys without one are supported".into());
        }
        let identity = match (path("CertFile")?, path("KeyFile")?) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => {
                return Err("its TLSConfig's CertFile and KeyFile go together, and it has one of them".into());
            }
        };
        Ok(Self { insecure, roots: path("CAFile")?, identity, only_13 })
    }

    /// Whether anybody is believed.
    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// For one connection. Reads the files, and so takes its time.
    ///
    /// # Errors
    /// A sentence that names the file, and holds nothing of what is in it.
    pub(super) fn for_connection(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self.insecure {
            true => Arc::new(Anybody(provider.signature_verification_algorithms)),
            false => self.verifier(&provider)?,
        };
        let versions: &[_] = if self.only_13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
        let building = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| format!("TLS cannot be used: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((certificate_file, key_file)) = &self.identity else {
            return Ok(building.with_no_client_auth());
        };
        let chain = certificates("its CertFile", certificate_file)?;
        let key = key(key_file)?;
        building.with_client_auth_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => format!(
                "its KeyFile {} is not the key of the first certificate in its CertFile {}",
                key_file.display(),
                certificate_file.display()
            ),
            _ => format!(
                "its CertFile {} or its KeyFile {} is of a kind that is not supported",
                certificate_file.display(),
                key_file.display()
            ),
        })
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
        let mut roots = RootCertStore::empty();
        let file = match &self.roots {
            Some(file) => {
                for root in certificates("its CAFile", file)? {
                    roots.add(root).map_err(|error| {
                        format!("its CAFile {} has a certificate that is none: {error}", file.display())
                    })?;
                }
                file.as_path()
            }
            None => {
                let file = HOSTS_ROOTS.iter().map(Path::new).find(|file| file.exists()).ok_or_else(|| {
                    format!("it has no CAFile, and this host trusts nobody: {} is missing", HOSTS_ROOTS[0])
                })?;
                // One of many may be of a kind that is not known here.
                roots.add_parsable_certificates(certificates("of whom this host trusts,", file)?);
                file
            }
        };
        WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|error| format!("nobody can be trusted by {}: {error}", file.display()))
    }

    /// Why a connection came to nothing.
    pub(super) fn why(&self, error: &io::Error) -> String {
        let Some(error) = of_tls(error) else { return error.to_string() };
        match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => match &self.roots {
                Some(file) => format!("its certificate is signed by nobody in {}", file.display()),
                None => "its certificate is signed by nobody whom this host trusts, and its specification has no CAFile".into(),
            },
            // Not by its name, which is a dependency's own.
            rustls::Error::InvalidCertificate(error) if format!("{error:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is that of a certificate authority: a server needs one of its own, signed by it".into()
            }
            rustls::Error::InvalidCertificate(error) => format!("its certificate is not accepted: {error}"),
            rustls::Error::InvalidMessage(error) => format!("what listens there does not speak TLS ({error:?})"),
            rustls::Error::AlertReceived(alert) => match (refuses_the_client(*alert), &self.identity) {
                (true, None) => {
                    format!("it wants a certificate of this host, and its specification has no CertFile (alert {alert:?})")
                }
                (true, Some((file, _))) => {
                    format!("it does not accept this host's certificate in {} (alert {alert:?})", file.display())
                }
                (false, _) => format!("it ended the handshake with the alert {alert:?}"),
            },
            error => error.to_string(),
        }
    }
}

/// The file's certificates; at least one.
fn certificates(of: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = files::read(file).map_err(|error| format!("{of} {}: {error}", file.display()))?;
    let read: Result<Vec<_>, _> = certificates_in(&bytes);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{of} {} holds no certificates in PEM, or broken ones", file.display())),
    }
}

pub(crate) fn certificates_in(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, ()> {
    // What a reader of PEM says of a fault may hold what it read.
    CertificateDer::pem_slice_iter(bytes).map(|read| read.map_err(drop)).collect()
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = files::read(file).map_err(|error| format!("its KeyFile {}: {error}", file.display()))?;
    key_in(&bytes).map_err(|why| format!("its KeyFile {} {why}", file.display()))
}

pub(crate) fn key_in(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|_| {
        let is_encrypted = bytes.windows(9).any(|window| window == b"ENCRYPTED");
        if is_encrypted {
            "is encrypted: only keys without a passphrase are supported"
        } else {
            "holds no private key in PEM"
        }
    })
}

/// The error of TLS that an error of reading or writing is, if it is one.
pub(super) fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The alert behind an error with which a server refuses a client's certificate, or that it has none. With TLS 1.3 it comes when the
/// client has long begun to write. Nothing of what that was is read before the certificate is accepted.
pub(super) fn refusal<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(rustls::Error::AlertReceived(alert)) = of_tls(io)
            && refuses_the_client(*alert)
        {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

fn refuses_the_client(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::CertificateRequired
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::NoCertificate
    )
}

/// `InsecureSkipVerify`: any certificate is good. That whoever shows it has its key is seen all the same.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
