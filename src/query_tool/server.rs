//! The server that is asked.

use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::{body::Body, http};
use bytes::Bytes;

use crate::{
    client::http_client,
    output::{print, printable},
};

/// Bytes of an answer.
const MAX_ANSWER: usize = 256 << 20;

/// Which server, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The server's HTTP address, with the prefix of its API if it has one
    #[arg(long, default_value = "http://127.0.0.1:3200")]
    url: String,
    /// Whose data, sent as `X-Scope-OrgID`; several as a|b
    #[arg(long)]
    tenant: Option<String>,
    /// Give up on an answer after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Print the server's answer as it is, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Arguments {
    /// Asks for JSON and prints it.
    pub(super) async fn print_json(&self, path: &str, parameters: &[(&str, String)]) -> anyhow::Result<()> {
        let body = self.get(path, parameters, "application/json").await?;
        print(&format!("{}\n", String::from_utf8_lossy(&body)));
        Ok(())
    }

    /// Asks for a protobuf message.
    pub(super) async fn message<M: prost::Message + Default>(&self, path: &str, parameters: &[(&str, String)]) -> anyhow::Result<M> {
        let body = self.get(path, parameters, "application/protobuf").await?;
        M::decode(body).with_context(|| format!("{}{path} did not answer with the message that was asked for", self.url))
    }

    /// Asks, and gives the body of the answer. Parameters whose value is empty are left out.
    pub(super) async fn get(&self, path: &str, parameters: &[(&str, String)], accept: &str) -> anyhow::Result<Bytes> {
        let base = self.url.trim_end_matches('/');
        let given = parameters.iter().filter(|(_, value)| !value.is_empty());
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
        let uri: http::Uri = format!("{base}{path}?{query}").parse().with_context(|| format!("\"{base}\" is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            bail!("\"{base}\" is not of the form http://host:port");
        }
        let mut request = http::Request::get(uri).header(http::header::ACCEPT, accept);
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let request = request.body(Body::empty()).context("the tenant cannot be sent")?;
        let client = http_client();
        let answer = async {
            let response = client.request(request).await.with_context(|| format!("{base} cannot be reached"))?;
            let status = response.status();
            let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER);
            anyhow::Ok((status, body.await.with_context(|| format!("the answer of {base} breaks off"))?))
        };
        let answer = tokio::time::timeout(Duration::from_secs(self.timeout), answer).await;
        let (status, body) = answer.with_context(|| format!("{base} did not answer within {} s", self.timeout))??;
        if !status.is_success() {
            let text = printable(String::from_utf8_lossy(&body).trim());
            let text = if text.is_empty() { status.canonical_reason().unwrap_or("nothing").to_owned() } else { text };
            bail!("{base}{path} answered {}: {text}", status.as_u16());
        }
        Ok(body)
    }
}

/// A text as part of a path.
pub(super) fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}
