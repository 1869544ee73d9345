//! One request to one endpoint, and what its answer means.
//!
//! ```text
//!  body ──► POST, headers, credentials ──► 2xx                        Written
//!                                     ├──► 5xx, 429, no answer        Retry, perhaps not before a while (`Retry-After`)
//!                                     ├──► 415, or 2xx that counts nothing though 2.0 was sent    NotUnderstood
//!                                     └──► anything else              Refused
//! ```
//!
//! The receiver of protocol 2.0 must tell how much it has written. One that answers 2xx without a word has read the body as an empty message
//! of protocol 1.0, since the two share no field.

use std::{fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::{
    Certificate, Client as Http, Identity, NoProxy, Response, StatusCode,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect, tls,
};

use super::{
    protocol::{Count, Protocol},
    settings::{Auth, Credentials, Endpoint, Pem, Proxy, TlsVersion},
};

/// No receiver makes us wait longer than this, whatever it says.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// How much of a refusal's text is logged.
const MAX_REASON_BYTES: usize = 512;

/// Why an endpoint can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL isn't one.
    #[error("url of remote write \"{0}\" is not an absolute http or https URL")]
    Url(String),
    /// A file can't be read.
    #[error("{what} of remote write {url}")]
    File {
        /// The endpoint.
        url: String,
        /// What the file is, and its path.
        what: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// TLS or proxy settings that don't fit.
    #[error("http client of remote write {url}")]
    Client {
        /// The endpoint.
        url: String,
        /// Why.
        #[source]
        error: reqwest::Error,
    },
    /// A rule of relabelling that isn't one.
    #[error("write_relabel_configs of remote write {url}: {why}")]
    Relabel {
        /// The endpoint.
        url: String,
        /// Why.
        why: String,
    },
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it is written.
    Written,
    /// It may work later.
    Retry {
        /// The status, if there was an answer.
        status: Option<u16>,
        why: String,
        after: Option<Duration>,
    },
    /// It will never work.
    Refused {
        status: u16,
        why: String,
        /// What was written nevertheless.
        written: Count,
    },
    /// The receiver doesn't know the protocol.
    NotUnderstood,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) protocol: Protocol,
    pub(crate) body: Bytes,
    /// 0 is the first.
    pub(crate) attempt: u32,
    /// What the body carries.
    pub(crate) count: Count,
    /// Beyond those of the protocol.
    pub(crate) headers: HeaderMap,
}

/// Sends to one endpoint. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: Http,
    url: reqwest::Url,
    auth: Auth,
    user_agent: HeaderValue,
}

impl Client {
    pub(crate) fn new(endpoint: &Endpoint, user_agent: &str) -> Result<Self, EndpointError> {
        let url = reqwest::Url::parse(&endpoint.url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| EndpointError::Url(endpoint.url.clone()))?;
        let failed = |error| EndpointError::Client { url: endpoint.url.clone(), error };
        let read = |what: &str, pem: &Pem| match pem {
            Pem::Text(text) => Ok(text.reveal().as_bytes().to_vec()),
            Pem::File(path) => fs::read(path).map_err(|error| {
                let what = format!("{what} {}", path.display());
                EndpointError::File { url: endpoint.url.clone(), what, error }
            }),
        };
        let tls = &endpoint.tls;
        let mut builder = Http::builder().timeout(endpoint.timeout).http1_only().tls_danger_accept_invalid_certs(tls.insecure_skip_verify);
        if let Some(ca) = &tls.ca {
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&read("ca_file", ca)?).map_err(failed)?);
        }
        if let Some((cert, key)) = &tls.identity {
            let pem = [read("cert_file", cert)?, b"\n".to_vec(), read("key_file", key)?].concat();
            builder = builder.identity(Identity::from_pem(&pem).map_err(failed)?);
        }
        let version = |version| if version == TlsVersion::V12 { tls::Version::TLS_1_2 } else { tls::Version::TLS_1_3 };
        if let Some(oldest) = tls.min_version {
            builder = builder.tls_version_min(version(oldest));
        }
        if let Some(newest) = tls.max_version {
            builder = builder.tls_version_max(version(newest));
        }
        builder = match &endpoint.proxy {
            Proxy::None => builder.no_proxy(),
            Proxy::Environment => builder,
            Proxy::Url { url, except } => {
                builder.proxy(reqwest::Proxy::all(url.as_str()).map_err(failed)?.no_proxy(NoProxy::from_string(except)))
            }
        };
        if !endpoint.follow_redirects {
            builder = builder.redirect(redirect::Policy::none());
        }
        let http = builder.build().map_err(failed)?;
        let user_agent = HeaderValue::from_str(user_agent).unwrap_or(HeaderValue::from_static("Rubato"));
        Ok(Self { http, url, auth: endpoint.auth.clone(), user_agent })
    }

    pub(crate) async fn send(&self, request: Request, now: Duration) -> Outcome {
        let authorization = match authorization(&self.auth).await {
            Ok(authorization) => authorization,
            Err(why) => return Outcome::Retry { status: None, why, after: None },
        };
        let mut headers = request.headers;
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(request.protocol.content_type()));
        headers.insert("x-prometheus-remote-write-version", HeaderValue::from_static(request.protocol.version()));
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        if request.attempt > 0 {
            headers.insert("retry-attempt", HeaderValue::from(request.attempt));
        }
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        match self.http.post(self.url.clone()).headers(headers).body(request.body).send().await {
            Ok(response) => judge(response, request.protocol, request.count, now).await,
            Err(error) => Outcome::Retry { status: None, why: chain(&error), after: None },
        }
    }
}

/// The header `Authorization`.
async fn authorization(auth: &Auth) -> Result<Option<HeaderValue>, String> {
    let text = match auth {
        Auth::None => return Ok(None),
        Auth::Basic { username, password } => {
            format!("Basic {}", STANDARD.encode(format!("{username}:{}", secret(password).await?)))
        }
        Auth::Header { scheme, credentials } => format!("{scheme} {}", secret(credentials).await?),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| "credentials of remote write are no text of a header".to_owned())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

async fn secret(credentials: &Credentials) -> Result<String, String> {
    match credentials {
        Credentials::Text(text) => Ok(text.reveal().to_owned()),
        Credentials::File(path) => {
            let text = tokio::fs::read_to_string(path).await.map_err(|error| format!("read credentials {}: {error}", path.display()))?;
            Ok(text.trim().to_owned())
        }
    }
}

async fn judge(mut response: Response, protocol: Protocol, sent: Count, now: Duration) -> Outcome {
    let status = response.status();
    let number = |name: &str| response.headers().get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let samples = number("x-prometheus-remote-write-samples-written");
    let histograms = number("x-prometheus-remote-write-histograms-written");
    let exemplars = number("x-prometheus-remote-write-exemplars-written");
    let told = samples.is_some() || histograms.is_some() || exemplars.is_some();
    let written = Count {
        samples: samples.unwrap_or(0).min(sent.samples),
        histograms: histograms.unwrap_or(0).min(sent.histograms),
        exemplars: exemplars.unwrap_or(0).min(sent.exemplars),
    };
    let expects_counts = protocol == Protocol::V2 && sent.samples + sent.histograms > 0;
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE && protocol == Protocol::V2 || status.is_success() && expects_counts && !told {
        return Outcome::NotUnderstood;
    }
    if status.is_success() {
        return Outcome::Written;
    }
    let after = response.headers().get(header::RETRY_AFTER).and_then(|value| retry_after(value, now));
    let text = reason(&mut response).await;
    let why = format!("{status}: {text}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Outcome::Retry { status: Some(status.as_u16()), why, after }
    } else {
        Outcome::Refused { status: status.as_u16(), why, written }
    }
}

/// The beginning of a body, as one line.
async fn reason(response: &mut Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REASON_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_REASON_BYTES - bytes.len())]);
    }
    String::from_utf8_lossy(&bytes).trim().replace('\n', " ")
}

/// `Retry-After`: seconds, or a date.
fn retry_after(value: &HeaderValue, now: Duration) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            date.saturating_sub(now)
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Headers of an endpoint and of a tenant over them. `None` if one of them can't be a header.
pub(crate) fn headers<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.insert(HeaderName::try_from(name.as_str()).ok()?, HeaderValue::try_from(value.as_str()).ok()?);
    }
    Some(headers)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = Duration::from_secs(784_111_777 - 20);
        for (text, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(20)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("99999999999", Some(300)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(300)),
            ("soon", None),
            ("-1", None),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(&value, now), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn endpoints_that_cannot_be() {
        for url in ["", "mimir:8080/push", "ftp://mimir/push", "/api/v1/push"] {
            let error = Client::new(&Endpoint::new(url), "Rubato").expect_err("no URL");
            assert!(matches!(error, EndpointError::Url(_)), "{url}: {error}");
        }
        let mut endpoint = Endpoint::new("https://mimir/push");
        endpoint.tls.ca = Some(Pem::File("/nonexistent/ca.pem".into()));
        let error = Client::new(&endpoint, "Rubato").expect_err("no file");
        assert_eq!(error.to_string(), "ca_file /nonexistent/ca.pem of remote write https://mimir/push");
    }
}
