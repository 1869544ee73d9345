//! Who may use a listener: users with passwords (basic) and bearers of tokens, from files that a secret is mounted to.
//!
//! ```text
//!  rubato.auth.basic_users_file:    user:password   ─┐
//!  rubato.auth.bearer_tokens_file:  token           ─┴─► Credentials ──► HTTP server (but /ready and /live), OTLP and other receivers
//! ```
//!
//! A line of a file is one who is let in; empty lines and those that begin with `#` are skipped. The files are read again when they have changed,
//! looked at once a second at most, so that a secret can be rotated: put the new line beside the old one, change the clients, remove the old one.
//! What a client says is compared in constant time. Neither gRPC between processes (9095) nor gossip are covered: certificates of clients are for those.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use axum::http::{HeaderMap, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ingest::Admit;
use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq as _};

use storage::tls;

/// Files are looked at this often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What is said to those who are not let in (RFC 9110, 11.6.1).
const CHALLENGE: &str = "Basic realm=\"rubato\", Bearer realm=\"rubato\"";

/// Where those who are let in are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AuthFiles {
    /// `user:password` on each line.
    pub(crate) basic_users: Option<PathBuf>,
    /// A token on each line.
    pub(crate) bearer_tokens: Option<PathBuf>,
}

/// Those who are let in.
#[derive(Debug)]
pub(crate) struct Credentials {
    files: AuthFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    looked: Instant,
    modified: [Option<SystemTime>; 2],
    accepted: Arc<Accepted>,
}

/// What follows the scheme in the header.
#[derive(Debug, Default)]
struct Accepted {
    basic: Vec<Vec<u8>>,
    bearer: Vec<Vec<u8>>,
}

impl Credentials {
    /// Reads the files; none where there are none, and everybody is let in.
    ///
    /// # Errors
    /// A file that cannot be read, or that lets nobody in.
    pub(crate) fn read(files: &AuthFiles) -> anyhow::Result<Option<Arc<Self>>> {
        if *files == AuthFiles::default() {
            return Ok(None);
        }
        let modified = files.modified();
        let accepted = Arc::new(files.read()?);
        let current = Mutex::new(Current { looked: Instant::now(), modified, accepted });
        Ok(Some(Arc::new(Self { files: files.clone(), current })))
    }

    fn accepted(&self) -> Arc<Accepted> {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= CHECK_INTERVAL {
            current.looked = Instant::now();
            let modified = self.files.modified();
            if modified != current.modified {
                current.modified = modified;
                match self.files.read() {
                    Ok(accepted) => current.accepted = Arc::new(accepted),
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot read who is let in, those of before are"),
                }
            }
        }
        Arc::clone(&current.accepted)
    }
}

impl Admit for Credentials {
    fn admit(&self, headers: &HeaderMap) -> bool {
        let accepted = self.accepted();
        let mut admitted = Choice::from(0);
        // More than one would be somebody's try to be let in by one proxy's reading and known by another's.
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some(space) = value.as_bytes().iter().position(|byte| *byte == b' ') else { return false };
        let (scheme, said) = value.as_bytes().split_at(space);
        let said = said.trim_ascii();
        let secrets: &[Vec<u8>] = match scheme.to_ascii_lowercase().as_slice() {
            b"basic" => &accepted.basic,
            b"bearer" => &accepted.bearer,
            _ => &[],
        };
        for secret in secrets {
            admitted |= secret.as_slice().ct_eq(said);
        }
        admitted.into()
    }

    fn challenge(&self) -> &'static str {
        CHALLENGE
    }
}

impl AuthFiles {
    /// Whether anybody has to say who they are.
    pub(crate) fn asks(&self) -> bool {
        self.basic_users.is_some() || self.bearer_tokens.is_some()
    }

    fn modified(&self) -> [Option<SystemTime>; 2] {
        [&self.basic_users, &self.bearer_tokens].map(|path| path.as_ref().and_then(|path| tls::modified(path)))
    }

    fn read(&self) -> anyhow::Result<Accepted> {
        let mut accepted = Accepted::default();
        if let Some(path) = &self.basic_users {
            for line in lines(path)? {
                // The number of the line would do; the line itself is a secret.
                anyhow::ensure!(line.contains(':'), "{} has a line that is not user:password", path.display());
                accepted.basic.push(BASE64_STANDARD.encode(line).into_bytes());
            }
        }
        if let Some(path) = &self.bearer_tokens {
            accepted.bearer = lines(path)?.into_iter().map(String::into_bytes).collect();
        }
        Ok(accepted)
    }
}

fn lines(path: &PathBuf) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: BTreeSet<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    anyhow::ensure!(!lines.is_empty(), "{} lets nobody in", path.display());
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a header"))])
    }

    #[test]
    fn those_of_the_files_are_let_in_and_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = AuthFiles { basic_users: Some(folder.path().join("users")), bearer_tokens: Some(folder.path().join("tokens")) };
        fs::write(folder.path().join("users"), "# people\nada:lace:x\n\n bob:secret \n").expect("writable");
        fs::write(folder.path().join("tokens"), "t-1\nt-2\n").expect("writable");
        let credentials = Credentials::read(&files).expect("both are fine").expect("there are some");
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for (value, expected) in [
            (basic("ada:lace:x"), true),
            (basic("bob:secret"), true),
            (basic("bob:secre"), false),
            (basic("# people"), false),
            (basic(""), false),
            ("basic  ".to_owned() + &BASE64_STANDARD.encode("bob:secret"), true),
            ("Bearer t-1".to_owned(), true),
            ("bearer t-2".to_owned(), true),
            ("Bearer t-3".to_owned(), false),
            ("Bearer ".to_owned(), false),
            ("t-1".to_owned(), false),
            (format!("Bearer {}", BASE64_STANDARD.encode("bob:secret")), false),
        ] {
            assert_eq!(credentials.admit(&headers(&value)), expected, "{value}");
        }
        assert!(!credentials.admit(&HeaderMap::new()));
        let mut twice = headers("Bearer t-1");
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer t-2"));
        assert!(!credentials.admit(&twice));
    }

    #[test]
    fn a_file_that_lets_nobody_in_is_an_error_that_keeps_secrets() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        let files = AuthFiles { basic_users: Some(path.clone()), bearer_tokens: None };
        let error = |files: &AuthFiles| format!("{:#}", Credentials::read(files).expect_err("nobody is let in"));
        assert!(error(&files).starts_with(&format!("cannot read {}", path.display())));
        fs::write(&path, "# nobody\n").expect("writable");
        assert_eq!(error(&files), format!("{} lets nobody in", path.display()));
        fs::write(&path, "hunter2\n").expect("writable");
        assert_eq!(error(&files), format!("{} has a line that is not user:password", path.display()));
        assert!(Credentials::read(&AuthFiles::default()).expect("no files, no errors").is_none());
    }
}
