//! S3: the endpoint, the style of addressing and the credentials, as Tempo decides them (config.md §5.4).
//!
//! Credentials come from the first that has keys: the settings, `AWS_*` variables, MinIO's variables, the shared credentials file, and then
//! what AWS hands to a workload: a web identity, a container's role, the machine's role. The client refreshes the last three by itself.

use std::{path::PathBuf, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use object_store::{
    ObjectStore,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
};

use super::{
    open::{OpenError, Transport},
    settings::{Encryption, S3, Secret},
    with_causes,
};

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A client for the bucket. Credentials of a workload are asked for once, so that missing ones stop the start.
pub(super) async fn client(settings: &S3, transport: &Transport, env: Env<'_>) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let address = address(settings, env)?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&settings.bucket)
        .with_region(address.region)
        .with_endpoint(address.endpoint)
        .with_virtual_hosted_style_request(!address.path_style)
        // Several stores that speak S3 lack the deletion of many objects at once.
        .with_disable_bulk_delete(true)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(transport.options(settings.insecure))
        .with_retry(transport.no_retries())
        .with_http_connector(transport.http.clone());
    builder = match &settings.encryption {
        Encryption::Bucket => builder,
        Encryption::S3 => builder.with_config("aws_server_side_encryption".parse()?, "AES256"),
        Encryption::Kms(key) if key.is_empty() => builder.with_config("aws_server_side_encryption".parse()?, "aws:kms"),
        Encryption::Kms(key) => builder.with_sse_kms_encryption(key),
        Encryption::Customer(key) => builder.with_ssec_encryption(STANDARD.encode(key.reveal())),
    };
    match keys(settings, env)? {
        Some(keys) => {
            builder = builder.with_access_key_id(keys.access).with_secret_access_key(keys.secret.reveal());
            if !keys.session.is_empty() {
                builder = builder.with_token(keys.session.reveal());
            }
            Ok(Arc::new(builder.build()?))
        }
        None => {
            for (key, variable) in WORKLOAD {
                if let Some(value) = env(variable) {
                    builder = builder.with_config(*key, value);
                }
            }
            let client = builder.build()?;
            client.credentials().get_credential().await.map_err(|error| OpenError::Credentials(with_causes(&error)))?;
            Ok(Arc::new(client))
        }
    }
}

/// What tells a workload on AWS who it is.
const WORKLOAD: &[(AmazonS3ConfigKey, &str)] = &[
    (AmazonS3ConfigKey::WebIdentityTokenFile, "AWS_WEB_IDENTITY_TOKEN_FILE"),
    (AmazonS3ConfigKey::RoleArn, "AWS_ROLE_ARN"),
    (AmazonS3ConfigKey::RoleSessionName, "AWS_ROLE_SESSION_NAME"),
    (AmazonS3ConfigKey::StsEndpoint, "AWS_ENDPOINT_URL_STS"),
    (AmazonS3ConfigKey::ContainerCredentialsRelativeUri, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    (AmazonS3ConfigKey::ContainerCredentialsFullUri, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    (AmazonS3ConfigKey::ContainerAuthorizationTokenFile, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    (AmazonS3ConfigKey::MetadataEndpoint, "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
];

/// Where the bucket is.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// URL without the bucket in path style, with it otherwise.
    endpoint: String,
    region: String,
    path_style: bool,
}

fn address(settings: &S3, env: Env<'_>) -> Result<Address, OpenError> {
    let wrong = |key, why: &str| Err(OpenError::Setting { key, why: why.to_owned() });
    if settings.bucket.is_empty() {
        return wrong("s3.bucket", "must not be empty");
    }
    if settings.endpoint.contains('/') {
        return wrong("s3.endpoint", "must be host[:port], without a scheme and a path");
    }
    let named = settings.endpoint.strip_suffix(".amazonaws.com").or_else(|| settings.endpoint.strip_suffix(".amazonaws.com.cn"));
    // s3.<region>, s3-<region>, s3.dualstack.<region>, s3-fips.<region>, or s3 alone.
    let region = named.and_then(|name| name.strip_prefix("s3")).and_then(|rest| rest.strip_prefix(['.', '-']));
    let region = region.map(|rest| rest.strip_prefix("dualstack.").or_else(|| rest.strip_prefix("fips.")).unwrap_or(rest));
    let written = Some(settings.region.clone()).filter(|region| !region.is_empty());
    let region = written
        .or_else(|| region.map(str::to_owned))
        .or_else(|| env("AWS_REGION"))
        .or_else(|| env("AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| "us-east-1".to_owned());
    let on_aws = settings.endpoint.is_empty() || named.is_some();
    let host = match (on_aws, settings.dual_stack) {
        (true, true) => format!("s3.dualstack.{region}.amazonaws.com"),
        (true, false) if settings.endpoint.is_empty() || settings.endpoint == "s3.amazonaws.com" => format!("s3.{region}.amazonaws.com"),
        (true, false) => settings.endpoint.clone(),
        (false, true) => return wrong("s3.enable_dual_stack", "only AWS has it"),
        (false, false) => settings.endpoint.clone(),
    };
    // A certificate of AWS covers one name before the host, and a bucket's dots would make it several.
    let path_style = settings.path_style.unwrap_or(!on_aws || (settings.bucket.contains('.') && !settings.insecure));
    let scheme = if settings.insecure { "http" } else { "https" };
    let endpoint = if path_style { format!("{scheme}://{host}") } else { format!("{scheme}://{}.{host}", settings.bucket) };
    Ok(Address { endpoint, region, path_style })
}

/// Keys that don't change.
#[derive(Debug, PartialEq, Eq)]
struct Keys {
    access: String,
    secret: Secret,
    session: Secret,
}

impl Keys {
    fn new(access: String, secret: impl Into<Secret>, session: Option<String>) -> Self {
        Self { access, secret: secret.into(), session: session.unwrap_or_default().into() }
    }
}

fn keys(settings: &S3, env: Env<'_>) -> Result<Option<Keys>, OpenError> {
    match (settings.access_key.is_empty(), settings.secret_key.is_empty()) {
        (false, false) => {
            let (secret, session) = (settings.secret_key.clone(), settings.session_token.clone());
            return Ok(Some(Keys { access: settings.access_key.clone(), secret, session }));
        }
        (true, false) => return Err(OpenError::Setting { key: "s3.access_key", why: "is missing beside secret_key".to_owned() }),
        (false, true) => return Err(OpenError::Setting { key: "s3.secret_key", why: "is missing beside access_key".to_owned() }),
        (true, true) => {}
    }
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let either = |one: &str, other: &str| env(one).or_else(|| env(other));
    let aws = either("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY").zip(either("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"));
    if let Some((access, secret)) = aws {
        return Ok(Some(Keys::new(access, secret, env("AWS_SESSION_TOKEN"))));
    }
    let minio = either("MINIO_ROOT_USER", "MINIO_ACCESS_KEY").zip(either("MINIO_ROOT_PASSWORD", "MINIO_SECRET_KEY"));
    if let Some((access, secret)) = minio {
        return Ok(Some(Keys::new(access, secret, None)));
    }
    let file = env("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let file = file.or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".aws/credentials")));
    let profile = either("AWS_PROFILE", "AWS_DEFAULT_PROFILE").unwrap_or_else(|| "default".to_owned());
    let Some(text) = file.and_then(|path| std::fs::read_to_string(path).ok()) else { return Ok(None) };
    Ok(keys_of_file(&text, &profile))
}

/// The keys of a profile in the shared credentials file, an INI file.
fn keys_of_file(text: &str, profile: &str) -> Option<Keys> {
    let (mut access, mut secret, mut session, mut here) = (None, None, None, false);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            here = section.strip_suffix(']').is_some_and(|name| name.trim() == profile);
        } else if let (true, Some((key, value))) = (here, line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match key.trim() {
                "aws_access_key_id" => access = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => session = value,
                _ => {}
            }
        }
    }
    Some(Keys::new(access?, secret?, session))
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(endpoint: &str, region: &str) -> S3 {
        S3 { bucket: "b".to_owned(), endpoint: endpoint.to_owned(), region: region.to_owned(), ..S3::default() }
    }

    #[test]
    fn addresses() {
        let none: Env<'_> = &|_| None;
        for (settings, endpoint, region) in [
            (s3("", ""), "https://b.s3.us-east-1.amazonaws.com", "us-east-1"),
            (s3("", "eu-west-1"), "https://b.s3.eu-west-1.amazonaws.com", "eu-west-1"),
            (s3("s3.amazonaws.com", "eu-west-1"), "https://b.s3.eu-west-1.amazonaws.com", "eu-west-1"),
            (s3("s3.us-east-2.amazonaws.com", ""), "https://b.s3.us-east-2.amazonaws.com", "us-east-2"),
            (s3("s3-us-west-2.amazonaws.com", ""), "https://b.s3-us-west-2.amazonaws.com", "us-west-2"),
            (s3("s3.dualstack.us-east-2.amazonaws.com", ""), "https://b.s3.dualstack.us-east-2.amazonaws.com", "us-east-2"),
            (s3("s3.cn-north-1.amazonaws.com.cn", ""), "https://b.s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            (S3 { dual_stack: true, ..s3("", "eu-west-1") }, "https://b.s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
            (S3 { path_style: Some(true), ..s3("", "eu-west-1") }, "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
            (S3 { insecure: true, ..s3("minio:9000", "") }, "http://minio:9000", "us-east-1"),
            (S3 { path_style: Some(false), ..s3("minio:9000", "here") }, "https://b.minio:9000", "here"),
        ] {
            let address = address(&settings, none).expect("right");
            assert_eq!((address.endpoint.as_str(), address.region.as_str()), (endpoint, region), "{settings:?}");
        }
        let dots = S3 { bucket: "a.b".to_owned(), ..s3("", "") };
        assert!(address(&dots, none).expect("right").path_style, "a certificate covers one level");
        let region = address(&s3("minio", ""), &|name| (name == "AWS_REGION").then(|| "r".to_owned())).expect("right").region;
        assert_eq!(region, "r");
    }

    #[test]
    fn wrong_settings_are_named() {
        let error = |settings: &S3| address(settings, &|_| None).expect_err("wrong").to_string();
        assert_eq!(error(&S3::default()), "storage.trace.s3.bucket: must not be empty");
        assert_eq!(error(&s3("http://minio", "")), "storage.trace.s3.endpoint: must be host[:port], without a scheme and a path");
        assert_eq!(error(&S3 { dual_stack: true, ..s3("minio", "") }), "storage.trace.s3.enable_dual_stack: only AWS has it");
        let half = S3 { access_key: "a".to_owned(), ..S3::default() };
        assert_eq!(keys(&half, &|_| None).expect_err("half").to_string(), "storage.trace.s3.secret_key: is missing beside access_key");
    }

    #[test]
    fn keys_come_from_the_first_that_has_them() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(
            file.path(),
            "[other]\naws_access_key_id = o\naws_secret_access_key = o\n# x\n[default]\naws_access_key_id=f\naws_secret_access_key = fs\n",
        )
        .expect("written");
        let path = file.path().to_str().expect("UTF-8").to_owned();
        let mut all = vec![
            ("AWS_ACCESS_KEY_ID", "e"),
            ("AWS_SECRET_ACCESS_KEY", "es"),
            ("AWS_SESSION_TOKEN", "et"),
            ("MINIO_ROOT_USER", "m"),
            ("MINIO_ROOT_PASSWORD", "ms"),
            ("AWS_SHARED_CREDENTIALS_FILE", path.as_str()),
        ];
        let found = |all: &[(&str, &str)], settings: &S3| {
            let env = |name: &str| all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            keys(settings, &env)
                .expect("right")
                .map(|keys| (keys.access, keys.secret.reveal().to_owned(), keys.session.reveal().to_owned()))
        };
        let of = |access: &str, secret: &str, session: &str| Some((access.to_owned(), secret.to_owned(), session.to_owned()));
        let written = S3 { access_key: "w".to_owned(), secret_key: "ws".into(), ..S3::default() };
        assert_eq!(found(&all, &written), of("w", "ws", ""));
        let none = S3::default();
        assert_eq!(found(&all, &none), of("e", "es", "et"));
        all.drain(..3);
        assert_eq!(found(&all, &none), of("m", "ms", ""));
        all.drain(..2);
        assert_eq!(found(&all, &none), of("f", "fs", ""));
        all.push(("AWS_PROFILE", "other"));
        assert_eq!(found(&all, &none), of("o", "o", ""));
        assert_eq!(found(&[], &none), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = S3 { access_key: "a".to_owned(), secret_key: "hunter2".into(), session_token: "hunter3".into(), ..S3::default() };
        let printed = format!("{settings:?} {:?}", keys(&settings, &|_| None));
        assert!(!printed.contains("hunter"), "{printed}");
    }
}
