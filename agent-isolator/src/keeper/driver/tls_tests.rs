//! Plugins behind TLS: real servers, with certificates that are made here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use shared::protocol::holder::MountFault;
use shared::record::Token;
use shared::store::Revision;
use shared::volume::{Driver, VolumeId, VolumeName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{DockerPlugins, VolumeDriver};
use crate::parameters::KeeperParameters;

/// Somebody who signs certificates.
struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key: Vec<u8>,
}

struct Certified {
    pem: String,
    key_pem: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der, bytes) = (certificate.pem(), certificate.der().clone(), key.serialize_der());
        Self { pem, der, issuer: Issuer::new(params, key), key: bytes }
    }

    /// A certificate for these names; what has expired did so long ago.
    fn signs(&self, names: &[&str], expired: bool) -> Certified {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certified {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
            key: key.serialize_der(),
        }
    }

    /// It takes its own certificate for a server's.
    fn itself(&self) -> Certified {
        Certified {
            pem: self.pem.clone(),
            key_pem: String::new(),
            der: self.der.clone(),
            key: self.key.clone(),
        }
    }
}

/// A server with this certificate, which asks for one of a client's that `clients` has signed, if there is such.
fn server(
    certified: &Certified,
    clients: Option<&Authority>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let building =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
    let building = match clients {
        None => building.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            building.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.key.clone()));
    building.with_single_cert(vec![certified.der.clone()], key).unwrap()
}

const ANY: &[&rustls::SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// Listens, with TLS or without; the port.
async fn serve(config: Option<ServerConfig>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = config.map(|config| TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    None => answer(stream).await,
                    Some(acceptor) => match acceptor.accept(stream).into_fallible().await {
                        Ok(stream) => answer(stream).await,
                        // What the client has written is read, so that it reads the alert.
                        Err((_, mut stream)) => {
                            let mut rest = Vec::new();
                            let _ended = stream.read_to_end(&mut rest).await;
                        }
                    },
                }
            });
        }
    });
    port
}

/// Answers one call.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = String::new();
    while !request.ends_with('}') {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).await {
            Ok(length) if length > 0 => request.push_str(&String::from_utf8_lossy(&bytes[..length])),
            // A client of TLS at a server that knows none.
            _ => return,
        }
        if !request.starts_with("POST /VolumeDriver.Mount HTTP/1.1\r\n") {
            let _sent = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            return;
        }
    }
    assert!(
        request.to_lowercase().contains("\r\nhost: localhost:") || request.contains("127.0.0.1:"),
        "{request}"
    );
    let body = r#"{"Mountpoint":"/m"}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    let _closed = stream.shutdown().await;
}

/// A host whose driver `x` is described by a specification in `directory`.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn put(&self, name: &str, text: &str) -> String {
        let file = self.directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    fn plugins(&self) -> DockerPlugins {
        let pairs = [("etcd_endpoints", "h:1"), ("drivers", "x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let mut plugins = DockerPlugins::new(&KeeperParameters::read(&pairs).unwrap().drivers);
        plugins.discovery.sockets = Path::new("/nonexistent").into();
        plugins.discovery.managed = Path::new("/nonexistent").into();
        plugins.discovery.specifications = vec![self.directory.path().to_owned()];
        plugins
    }

    /// Mounts a volume by the plugin at this address: where, or why not.
    async fn mount(&self, address: &str, tls: &serde_json::Value) -> Result<String, String> {
        self.put(
            "x.json",
            &serde_json::json!({ "Name": "x", "Addr": address, "TLSConfig": tls }).to_string(),
        );
        let volume = VolumeId { driver: Driver::new("x").unwrap(), name: VolumeName::new("v").unwrap() };
        let plugins = self.plugins();
        let mounting = plugins.mount(&volume, None, Token(Revision(7)));
        match tokio::time::timeout(Duration::from_secs(30), mounting).await.unwrap() {
            Ok(path) => Ok(path),
            // Nothing of a call is ever under way where the server was not believed, or did not believe.
            Err(MountFault::Unreachable(why)) => Err(why.to_string()),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn assert_says(answer: &Result<String, String>, words: &str) {
    let why = answer.as_ref().unwrap_err();
    assert!(why.contains("could not be reached: ") && why.contains(words), "{words:?} but {why}");
    assert!(!why.contains("BEGIN") && !why.contains("MIG"), "{why}");
}

#[tokio::test]
async fn a_server_is_believed_that_the_ca_file_vouches_for_under_the_name_of_its_address() {
    let (host, authority, other) = (Host::new(), Authority::new("one"), Authority::new("another"));
    let ca = host.put("ca.pem", &authority.pem);
    let trusting = serde_json::json!({ "CAFile": ca });
    let good = authority.signs(&["localhost", "127.0.0.1"], false);
    let port = serve(Some(server(&good, None, ANY))).await;
    let at = |port: u16| format!("https://localhost:{port}");
    for address in [at(port), format!("https://127.0.0.1:{port}/a/path")] {
        assert_eq!(host.mount(&address, &trusting).await, Ok("/m".into()), "{address}");
    }
    // Whom the host trusts signed nothing of this, and a CAFile is trusted alone.
    let of_the_host = host.mount(&at(port), &serde_json::Value::Null).await;
    assert!(of_the_host.as_ref().unwrap_err().contains("trusts"), "{of_the_host:?}");
    let strangers = host.put("other.pem", &other.pem);
    let answer = host.mount(&at(port), &serde_json::json!({ "CAFile": strangers })).await;
    assert_says(&answer, &format!("its certificate is signed by nobody in {strangers}"));
    // It is read for each connection.
    host.put("other.pem", &format!("{}\n{}", other.pem, authority.pem));
    let answer = host.mount(&at(port), &serde_json::json!({ "CAFile": strangers })).await;
    assert_eq!(answer, Ok("/m".into()));

    let refused = [
        (authority.signs(&["plugin.example"], false), "not valid for name \"localhost\""),
        (authority.signs(&["localhost"], true), "certificate expired"),
        (authority.itself(), "is that of a certificate authority"),
        (other.itself(), "its certificate is "),
        (other.signs(&["localhost"], false), "signed by nobody in"),
    ];
    for (certified, words) in refused {
        let port = serve(Some(server(&certified, None, ANY))).await;
        assert_says(&host.mount(&at(port), &trusting).await, words);
        // Asked for in so many words.
        let insecure = serde_json::json!({ "CAFile": ca, "InsecureSkipVerify": true });
        assert_eq!(host.mount(&at(port), &insecure).await, Ok("/m".into()), "{words}");
    }
    // A server that knows no TLS, and one that knows too old one.
    let port = serve(None).await;
    for tls in [&trusting, &serde_json::json!({ "InsecureSkipVerify": true })] {
        assert_says(&host.mount(&at(port), tls).await, "does not speak TLS");
    }
    assert_eq!(host.mount(&format!("tcp://localhost:{port}"), &serde_json::json!({})).await, Ok("/m".into()));
    let port = serve(Some(server(&good, None, &[&rustls::version::TLS12]))).await;
    assert_eq!(host.mount(&at(port), &trusting).await, Ok("/m".into()));
    let only_13 = serde_json::json!({ "CAFile": ca, "MinVersion": 772 });
    assert_says(&host.mount(&at(port), &only_13).await, "ProtocolVersion");
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "nothing is the process's");
}

#[tokio::test]
async fn a_server_that_wants_to_know_this_host_is_shown_its_certificate() {
    let (host, authority, other) = (Host::new(), Authority::new("one"), Authority::new("another"));
    let ca = host.put("ca.pem", &authority.pem);
    let shown = |of: &Authority, expired: bool| {
        let certified = of.signs(&["agent-1"], expired);
        let (certificate, key) =
            (host.put("cert.pem", &certified.pem), host.put("key.pem", &certified.key_pem));
        serde_json::json!({ "CAFile": ca, "CertFile": certificate, "KeyFile": key })
    };
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let certified = authority.signs(&["localhost"], false);
        let address = format!(
            "https://localhost:{}",
            serve(Some(server(&certified, Some(&authority), versions))).await
        );
        let none = serde_json::json!({ "CAFile": ca });
        assert_says(&host.mount(&address, &none).await, "it wants a certificate of this host");
        let wrong = shown(&other, false);
        assert_says(&host.mount(&address, &wrong).await, "does not accept this host's certificate in ");
        let expired = shown(&authority, true);
        assert_says(&host.mount(&address, &expired).await, "does not accept this host's certificate in ");
        // Renewed: the same files.
        assert_eq!(shown(&authority, false), expired);
        assert_eq!(host.mount(&address, &expired).await, Ok("/m".into()));
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_and_nothing_in_them_is() {
    let (host, authority) = (Host::new(), Authority::new("one"));
    let port = serve(Some(server(&authority.signs(&["localhost"], false), Some(&authority), ANY))).await;
    let (own, other) = (authority.signs(&["agent-1"], false), authority.signs(&["agent-1"], false));
    let (ca, certificate) = (host.put("ca.pem", &authority.pem), host.put("cert.pem", &own.pem));
    let (key, others_key) = (host.put("key.pem", &own.key_pem), host.put("others.pem", &other.key_pem));
    let missing = host.directory.path().join("missing.pem").display().to_string();
    let directory = host.directory.path().display().to_string();
    let nonsense = host.put("nonsense.pem", "no PEM");
    // Nothing of a line that is broken may be shown: it is the key.
    let secret = own.key_pem.lines().nth(1).unwrap().to_owned();
    let broken = host.put("broken.pem", &format!("-----BEGIN PRIVATE KEY-----\n-----BEGIN {secret}\n"));
    let encrypted = host.put(
        "encrypted.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    for (changed, value, words) in [
        ("CAFile", &missing, format!("its CAFile {missing}: No such file")),
        ("CAFile", &directory, format!("its CAFile {directory}: it is no file")),
        ("CAFile", &nonsense, format!("its CAFile {nonsense} holds no certificates")),
        ("CAFile", &key, format!("its CAFile {key} holds no certificates")),
        ("CertFile", &missing, format!("its CertFile {missing}: No such file")),
        ("CertFile", &key, format!("its CertFile {key} holds no certificates")),
        ("KeyFile", &missing, format!("its KeyFile {missing}: No such file")),
        ("KeyFile", &certificate, format!("its KeyFile {certificate} holds no private key")),
        ("KeyFile", &broken, format!("its KeyFile {broken} holds no private key")),
        ("KeyFile", &encrypted, format!("its KeyFile {encrypted} is encrypted")),
        ("KeyFile", &others_key, format!("its KeyFile {others_key} is not the key of")),
    ] {
        let mut tls = serde_json::json!({ "CAFile": ca, "CertFile": certificate, "KeyFile": key });
        tls[changed] = value.as_str().into();
        let answer = host.mount(&format!("https://localhost:{port}"), &tls).await;
        assert_says(&answer, &words);
        assert!(!answer.unwrap_err().contains(&secret));
    }
    let whole = serde_json::json!({ "CAFile": ca, "CertFile": certificate, "KeyFile": key });
    assert_eq!(host.mount(&format!("https://localhost:{port}"), &whole).await, Ok("/m".into()));
    // Nobody listens.
    let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    assert_says(&host.mount(&format!("https://localhost:{free}"), &whole).await, "refused");
}
