//! Specification files: `NAME.spec`, an address, and `NAME.json`, an address and how its TLS is to be.
//!
//! As Docker's own client understands them, but for TLS: where Docker would not verify, or not encrypt, what the file does not
//! plainly say so of, the file is refused or the server verified.

use std::path::Path;

use serde_json::Value;

use super::DriverError;
use super::answer::field;
use super::endpoint::{Address, Endpoint};
use super::tls::Tls;

/// Where a plugin listens, as the file says.
pub(crate) fn specified(file: &Path, text: &str) -> Result<Endpoint, DriverError> {
    let is_json = file.extension().is_some_and(|ending| ending == "json");
    let read = if is_json { of_json(text) } else { Ok((text.trim().to_owned(), None)) };
    read.and_then(|(address, tls)| endpoint(&address, tls))
        .map_err(|fault| DriverError::Specification { file: file.to_owned(), fault })
}

fn of_json(text: &str) -> Result<(String, Option<Tls>), String> {
    let parsed: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let address = field(&parsed, "Addr").and_then(Value::as_str).ok_or("it has no Addr")?;
    let tls = field(&parsed, "TLSConfig").filter(|tls| !tls.is_null()).map(Tls::read).transpose()?;
    Ok((address.to_owned(), tls))
}

fn endpoint(address: &str, tls: Option<Tls>) -> Result<Endpoint, String> {
    let (scheme, rest) = address.split_once("://").unwrap_or_default();
    if scheme != "https" && tls.as_ref().is_some_and(|tls| *tls != Tls::default()) {
        // Docker's client speaks without TLS then.
        return Err("its TLSConfig holds for an https:// address alone, and its Addr is none".into());
    }
    match scheme {
        "unix" => Ok(Endpoint::Unix(rest.into())),
        "tcp" | "http" => Address::read("http", rest).map(Endpoint::Tcp),
        "https" => {
            Address::read("https", rest).map(|address| Endpoint::Tls(address, tls.unwrap_or_default()))
        }
        _ => Err(format!("{address:?} is no unix://, tcp://, http:// or https:// address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: &str, text: &str) -> String {
        match specified(Path::new(file), text) {
            Ok(Endpoint::Unix(path)) => format!("unix {}", path.display()),
            Ok(Endpoint::Tls(address, tls)) => format!("https://{address} {tls:?}"),
            Ok(other) => other.shown(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn specification_files_name_a_socket_or_an_address() {
        assert_eq!(at("x.spec", "unix:///run/x.sock\n"), "unix /run/x.sock");
        assert_eq!(at("x.spec", "tcp://127.0.0.1:7979/"), "http://127.0.0.1:7979");
        assert_eq!(at("x.json", r#"{"Name":"x","Addr":"tcp://h:1"}"#), "http://h:1");
        // As Docker does: the path of an address is none of a plugin's.
        assert_eq!(at("x.json", r#"{"addr":"http://h/docker/plugin"}"#), "http://h:80");
        assert!(at("x.spec", "nonsense").contains("\"nonsense\" is no unix://, tcp://, "));
        assert!(at("x.json", r#"{"Name":"x"}"#).contains("it has no Addr"));
        assert!(at("x.spec", "tcp://").contains("names no host"));
        let secret = at("x.spec", "https://ada:secret@h:1");
        assert!(secret.contains("has a user name") && !secret.contains("secret"), "{secret}");
    }

    #[test]
    fn tls_is_for_https_alone_and_verified_unless_the_file_says_otherwise() {
        let plain = format!("https://h:443 {:?}", Tls::default());
        assert_eq!(at("x.spec", "https://h"), plain);
        assert_eq!(at("x.json", r#"{"Addr":"https://h"}"#), plain);
        assert_eq!(at("x.json", r#"{"Addr":"https://h","TLSConfig":{"CAFile":""}}"#), plain);
        assert!(!plain.contains("insecure: true"), "{plain}");
        let whole = at(
            "x.json",
            r#"{"Addr":"https://h:1/","tlsconfig":{"insecureskipverify":true,"CAFile":"/ca","CertFile":"/c","KeyFile":"/k"}}"#,
        );
        for words in ["https://h:1 ", "insecure: true", "\"/ca\"", "\"/c\"", "\"/k\""] {
            assert!(whole.contains(words), "{whole}");
        }
        for address in ["tcp://h:1", "http://h:1", "unix:///run/x.sock"] {
            let with = |tls: &str| at("x.json", &format!(r#"{{"Addr":"{address}","TLSConfig":{tls}}}"#));
            assert!(with(r#"{"CAFile":"/ca"}"#).contains("holds for an https:// address alone"), "{address}");
            assert!(!with("{}").contains("TLSConfig") && !with("null").contains("TLSConfig"), "{address}");
        }
        for (tls, words) in [
            (r#"{"CAFile":"ca.pem"}"#, "CAFile is \"ca.pem\", which is no absolute path"),
            (r#"{"CAFile":7}"#, "CAFile is no text"),
            (r#"{"InsecureSkipVerify":"yes"}"#, "InsecureSkipVerify is neither true nor false"),
            (r#"{"CertFile":"/c"}"#, "CertFile and KeyFile go together"),
            (r#"{"KeyFile":"/k"}"#, "CertFile and KeyFile go together"),
            (r#"{"Passphrase":"secret"}"#, "Passphrase"),
            (r#"{"MinVersion":769}"#, "MinVersion"),
            ("[]", "TLSConfig is no object"),
        ] {
            let said = at("x.json", &format!(r#"{{"Addr":"https://h:1","TLSConfig":{tls}}}"#));
            assert!(said.contains(words) && !said.contains("secret"), "{said}");
        }
    }
}
