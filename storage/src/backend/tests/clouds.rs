//! GCS and Azure: what is asked from them, seen by a server that writes it down; and, where an emulator runs, that they conform.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus::Registry;
use tokio::net::TcpListener;

use super::{
    super::{Azure, Components, Encryption, Gcs, Requests, S3, Settings, Store, open},
    PART, conformance,
    conformance::tenant,
};
use crate::id::BlockId;

/// The key of Azurite's account, which its documentation prints.
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A request as it arrived.
#[derive(Debug)]
struct Asked {
    line: String,
    headers: http::HeaderMap,
    bytes: usize,
}

/// A server that answers everything with 200 and nothing, and writes down what it was asked.
async fn recorder() -> (String, Arc<Mutex<Vec<Asked>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let written = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = Arc::clone(&written);
            let answer = service_fn(move |request: Request<Incoming>| {
                let asked = Arc::clone(&asked);
                async move {
                    let (parts, body) = request.into_parts();
                    let bytes = body.collect().await?.to_bytes().len();
                    let line = format!("{} {}", parts.method, parts.uri);
                    asked.lock().expect("no panic").push(Asked { line, headers: parts.headers, bytes });
                    let response = Response::builder().header("etag", "\"1\"").header("last-modified", "Tue, 01 Jan 2030 00:00:00 GMT");
                    Ok::<_, hyper::Error>(response.body(Full::new(Bytes::new())).expect("an answer"))
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { _ = server.serve_connection(TokioIo::new(stream), answer).await });
        }
    });
    (address, asked)
}

async fn open_once(settings: Settings, env: &dyn Fn(&str) -> Option<String>) -> Store {
    let registry = Registry::new();
    open(&settings, Components { registry: &registry, seed: 1, env }).await.expect("open")
}

/// Writes one object and returns the request.
async fn put(settings: Settings, env: &dyn Fn(&str) -> Option<String>, asked: &Mutex<Vec<Asked>>) -> Asked {
    let store = open_once(settings, env).await;
    store.put_named(&tenant("a"), BlockId::nil(), "bloom-0", Bytes::from_static(b"bloom")).await.expect("put");
    asked.lock().expect("no panic").pop().expect("it was asked")
}

const OBJECT: &str = "p/a/00000000-0000-0000-0000-000000000000/bloom-0";

fn header<'a>(asked: &'a Asked, name: &str) -> &'a str {
    asked.headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

#[tokio::test]
async fn objects_of_s3_carry_what_was_configured() {
    let (address, asked) = recorder().await;
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let settings = S3 {
        bucket: "b".to_owned(),
        prefix: "p".to_owned(),
        endpoint: address,
        region: "eu-west-1".to_owned(),
        access_key: "AK".to_owned(),
        secret_key: "hush".into(),
        session_token: "token".into(),
        insecure: true,
        encryption: Encryption::Kms("key-1".to_owned()),
        tags: pairs(&[("team", "trace s"), ("x", "y")]),
        metadata: pairs(&[("by", "rubato")]),
        storage_class: "STANDARD_IA".to_owned(),
        ..S3::default()
    };
    let kms = put(Settings::S3(Box::new(settings.clone())), &|_| None, &asked).await;
    assert_eq!((kms.line.as_str(), kms.bytes), (format!("PUT /b/{OBJECT}").as_str(), 5));
    for (name, value) in [
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "key-1"),
        ("x-amz-tagging", "team=trace+s&x=y"),
        ("x-amz-meta-by", "rubato"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-security-token", "token"),
    ] {
        assert_eq!(header(&kms, name), value, "{name}");
    }
    let authorization = header(&kms, "authorization");
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AK/") && authorization.contains("/eu-west-1/s3/"), "{authorization}");
    assert!(header(&kms, "user-agent").starts_with("rubato/"));

    let plain = S3 { encryption: Encryption::S3, ..settings.clone() };
    let plain = put(Settings::S3(Box::new(plain)), &|_| None, &asked).await;
    assert_eq!(header(&plain, "x-amz-server-side-encryption"), "AES256");
    let customer = S3 { encryption: Encryption::Customer("0123456789abcdef0123456789abcdef".into()), ..settings };
    let customer = put(Settings::S3(Box::new(customer)), &|_| None, &asked).await;
    assert_eq!(header(&customer, "x-amz-server-side-encryption-customer-algorithm"), "AES256");
    assert_eq!(header(&customer, "x-amz-server-side-encryption-customer-key"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
}

#[tokio::test]
async fn objects_of_gcs_carry_what_was_configured() {
    let (address, asked) = recorder().await;
    let gcs = Gcs {
        bucket: "b".to_owned(),
        prefix: "p".to_owned(),
        endpoint: format!("http://{address}/storage/v1/"),
        insecure: true,
        object_cache_control: "no-cache".to_owned(),
        object_metadata: [("by".to_owned(), "rubato".to_owned())].into(),
        ..Gcs::default()
    };
    let request = put(Settings::Gcs(Box::new(gcs)), &|_| None, &asked).await;
    let escaped = OBJECT.replace('/', "%2F").replace('-', "%2D");
    assert_eq!((request.line.as_str(), request.bytes), (format!("PUT /b/{escaped}").as_str(), 5));
    assert_eq!((header(&request, "cache-control"), header(&request, "x-goog-meta-by")), ("no-cache", "rubato"));
    assert_eq!(header(&request, "authorization").trim(), "Bearer", "no credentials");
}

#[tokio::test]
async fn objects_of_azure_are_signed_with_the_key_of_the_account() {
    let (address, asked) = recorder().await;
    let azure = Azure { container: "c".to_owned(), prefix: "p".to_owned(), endpoint_suffix: address, ..Azure::default() };
    let env = |name: &str| match name {
        "AZURE_STORAGE_ACCOUNT" => Some("acc".to_owned()),
        "AZURE_STORAGE_KEY" => Some(EMULATOR_KEY.to_owned()),
        _ => None,
    };
    let request = put(Settings::Azure(Box::new(azure.clone())), &env, &asked).await;
    assert_eq!((request.line.as_str(), request.bytes), (format!("PUT /acc/c/{OBJECT}").as_str(), 5));
    assert!(header(&request, "authorization").starts_with("SharedKey acc:"), "{request:?}");
    assert_eq!(header(&request, "x-ms-blob-type"), "BlockBlob");
    let written = Azure { account: "other".to_owned(), key: EMULATOR_KEY.into(), ..azure };
    let request = put(Settings::Azure(Box::new(written)), &env, &asked).await;
    assert!(request.line.starts_with("PUT /other/c/"), "{}", request.line);
}

#[tokio::test]
async fn missing_settings_are_named() {
    let registry = || Registry::new();
    let azure = |change: fn(&mut Azure)| {
        let mut azure = Azure { container: "c".to_owned(), account: "a".to_owned(), ..Azure::default() };
        change(&mut azure);
        Settings::Azure(Box::new(azure))
    };
    for (settings, expected) in [
        (Settings::Gcs(Box::default()), "storage.trace.gcs.bucket_name: must not be empty"),
        (azure(|azure| azure.container.clear()), "storage.trace.azure.container_name: must not be empty"),
        (azure(|azure| azure.account.clear()), "storage.trace.azure.storage_account_name: is empty, and so is AZURE_STORAGE_ACCOUNT"),
        (
            azure(|_| {}),
            "storage.trace.azure.storage_account_key: is empty, so is AZURE_STORAGE_KEY, and neither managed identity nor federated token is used",
        ),
        (
            Settings::S3(Box::new(S3 {
                bucket: "b".to_owned(),
                prefix: "a//b".to_owned(),
                access_key: "a".to_owned(),
                secret_key: "s".into(),
                ..S3::default()
            })),
            "storage.trace.s3.prefix: Path \"a//b\" contained empty path segment",
        ),
    ] {
        let components = Components { registry: &registry(), seed: 1, env: &|_| None };
        assert_eq!(open(&settings, components).await.expect_err("incomplete").to_string(), expected);
    }
}

#[tokio::test]
async fn no_credentials_are_an_error_at_the_start() {
    let registry = Registry::new();
    let settings = S3 { bucket: "b".to_owned(), ..S3::default() };
    // Nobody listens where the machine's credentials should come from.
    let env = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| "http://127.0.0.1:1".to_owned());
    let settings = S3 { requests: Requests { attempts: 2, backoff_initial: Duration::from_millis(1), ..Requests::default() }, ..settings };
    let error = open(&Settings::S3(Box::new(settings)), Components { registry: &registry, seed: 1, env: &env }).await.expect_err("nobody");
    assert!(error.to_string().starts_with("failed to get credentials: "), "{error}");
}

#[tokio::test]
async fn azurite_conforms() {
    let Ok(address) = std::env::var("RUBATO_TEST_AZURITE") else {
        eprintln!("skipped: RUBATO_TEST_AZURITE does not name the host:port of an Azurite with an empty container \"traces\"");
        return;
    };
    let azure = Azure {
        account: "devstoreaccount1".to_owned(),
        key: EMULATOR_KEY.into(),
        container: "traces".to_owned(),
        endpoint_suffix: address,
        ..Azure::default()
    };
    let store = open_once(Settings::Azure(Box::new(azure)), &|_| None).await.with_parts(PART, 2);
    conformance::all(|prefix| Store { prefix: object_store::path::Path::from(prefix), ..store.clone() }).await;
}
