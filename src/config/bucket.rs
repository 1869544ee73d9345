//! `storage.trace.backend` and the keys of the store that it names.
//!
//! A key that Rubato can't honour is a problem with its line, if honouring it matters for what is stored or who may read it: an encryption
//! that isn't applied must not go unnoticed.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use storage::backend::{Azure, Encryption, Gcs, Requests, S3, Tls};

use super::{Backend, Problem, Settings, Value, settings::texts};

/// Retries of Azure's client in Tempo, which has no key for them.
const AZURE_ATTEMPTS: u32 = 4;

/// Smallest part that S3 takes.
const MIN_PART_BYTES: u64 = 5 << 20;

/// The store that is meant by the keys below `client`.
pub(super) fn backend(s: &Settings, client: &str, problems: &mut Vec<Problem>) -> Backend {
    let keys = |name: &str| Keys { s, block: format!("{client}.{name}") };
    let settings = match s.text(&format!("{client}.backend")) {
        "local" => storage::backend::Settings::Local(PathBuf::from(keys("local").text("path"))),
        "s3" => storage::backend::Settings::S3(Box::new(s3(&keys("s3"), problems))),
        "gcs" => storage::backend::Settings::Gcs(Box::new(gcs(&keys("gcs")))),
        "azure" => storage::backend::Settings::Azure(Box::new(azure(&keys("azure")))),
        name => return Backend::Unknown(name.to_owned()),
    };
    Backend::Store(settings)
}

/// The keys of a block.
struct Keys<'a> {
    s: &'a Settings,
    block: String,
}

impl Keys<'_> {
    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.block)
    }

    fn text(&self, key: &str) -> String {
        self.s.text(&self.path(key)).to_owned()
    }

    fn flag(&self, key: &str) -> bool {
        self.s.flag(&self.path(key))
    }

    fn count(&self, key: &str) -> usize {
        self.s.count(&self.path(key))
    }

    fn int(&self, key: &str) -> i64 {
        if let Value::Int(number) = self.s.get(&self.path(key)) { *number } else { 0 }
    }

    fn duration(&self, key: &str) -> Duration {
        self.s.duration(&self.path(key))
    }

    fn map(&self, key: &str) -> BTreeMap<String, String> {
        texts(self.s.get(&self.path(key)))
    }

    fn requests(&self, attempts: u32) -> Requests {
        let (hedge_at, hedge_up_to) = (self.duration("hedge_requests_at"), self.count("hedge_requests_up_to"));
        Requests { hedge_at, hedge_up_to, attempts, ..Requests::default() }
    }

    fn problem(&self, key: &str, why: &str) -> Problem {
        let path = self.path(key);
        Problem::new(self.s.line(&path), format!("{path}: {why}"))
    }
}

fn attempts(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

fn s3(keys: &Keys<'_>, problems: &mut Vec<Problem>) -> S3 {
    for (key, instead) in [
        ("tls_server_name", "the certificate must be for the endpoint"),
        ("tls_cipher_suites", "those of TLS 1.2 and 1.3 that are safe are used"),
        ("sse.kms_encryption_context", "the bucket's own encryption can have one"),
    ] {
        if !keys.text(key).is_empty() {
            problems.push(keys.problem(key, &format!("is not available in this version of Rubato: {instead}")));
        }
    }
    if keys.flag("signature_v2") {
        problems.push(keys.problem("signature_v2", "is not available in Rubato: requests are signed with version 4"));
    }
    let part_size = keys.count("part_size");
    if part_size != 0 && (part_size as u64) < MIN_PART_BYTES {
        problems.push(keys.problem("part_size", "S3 takes no part below 5242880 bytes"));
    }
    let path_style = match (keys.flag("forcepathstyle"), keys.int("bucket_lookup_type")) {
        (true, _) => Some(true),
        (false, 0) => None,
        (false, 1) => Some(false),
        (false, 2) => Some(true),
        (false, other) => {
            problems.push(keys.problem("bucket_lookup_type", &format!("{other} is not one of 0 (auto), 1 (virtual host), 2 (path)")));
            None
        }
    };
    S3 {
        bucket: keys.text("bucket"),
        prefix: keys.text("prefix"),
        endpoint: keys.text("endpoint"),
        region: keys.text("region"),
        access_key: keys.text("access_key"),
        secret_key: keys.text("secret_key").into(),
        session_token: keys.text("session_token").into(),
        insecure: keys.flag("insecure"),
        path_style,
        dual_stack: keys.flag("enable_dual_stack"),
        tls: tls(keys, problems),
        encryption: encryption(keys, problems),
        part_size,
        tags: keys.map("tags"),
        metadata: keys.map("metadata"),
        storage_class: keys.text("storage_class"),
        list_blocks_concurrency: keys.count("list_blocks_concurrency"),
        requests: Requests {
            backoff_initial: keys.duration("retry_backoff_initial"),
            backoff_max: keys.duration("retry_backoff_max"),
            ..keys.requests(attempts(keys.count("retry_max_attempts")))
        },
    }
}

fn tls(keys: &Keys<'_>, problems: &mut Vec<Problem>) -> Tls {
    let path = |key: &str| Some(keys.text(key)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let identity = match (path("tls_cert_path"), path("tls_key_path")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            problems.push(keys.problem("tls_cert_path", "has no tls_key_path beside it"));
            None
        }
        (None, Some(_)) => {
            problems.push(keys.problem("tls_key_path", "has no tls_cert_path beside it"));
            None
        }
    };
    let version = keys.text("tls_min_version");
    if !matches!(version.as_str(), "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" | "VersionTLS13") {
        let why = format!("\"{version}\" is not one of VersionTLS10, VersionTLS11, VersionTLS12, VersionTLS13");
        problems.push(keys.problem("tls_min_version", &why));
    }
    Tls {
        ca: path("tls_ca_path"),
        identity,
        insecure_skip_verify: keys.flag("tls_insecure_skip_verify"),
        require_1_3: version == "VersionTLS13",
    }
}

fn encryption(keys: &Keys<'_>, problems: &mut Vec<Problem>) -> Encryption {
    let customer = keys.text("sse.encryption_key");
    match keys.text("sse.type").as_str() {
        "" => Encryption::Bucket,
        "SSE-S3" => Encryption::S3,
        "SSE-KMS" => Encryption::Kms(keys.text("sse.kms_key_id")),
        "SSE-C" => {
            if customer.len() != 32 {
                problems.push(keys.problem("sse.encryption_key", "SSE-C needs a key of 32 bytes"));
            }
            Encryption::Customer(customer.into())
        }
        other => {
            problems.push(keys.problem("sse.type", &format!("\"{other}\" is not one of SSE-S3, SSE-KMS, SSE-C")));
            Encryption::Bucket
        }
    }
}

fn gcs(keys: &Keys<'_>) -> Gcs {
    Gcs {
        bucket: keys.text("bucket_name"),
        prefix: keys.text("prefix"),
        endpoint: keys.text("endpoint"),
        insecure: keys.flag("insecure"),
        chunk_buffer_size: keys.count("chunk_buffer_size"),
        object_cache_control: keys.text("object_cache_control"),
        object_metadata: keys.map("object_metadata"),
        list_blocks_concurrency: keys.count("list_blocks_concurrency"),
        requests: keys.requests(attempts(keys.count("max_retries").saturating_add(1))),
    }
}

fn azure(keys: &Keys<'_>) -> Azure {
    Azure {
        account: keys.text("storage_account_name"),
        key: keys.text("storage_account_key").into(),
        container: keys.text("container_name"),
        prefix: keys.text("prefix"),
        endpoint_suffix: keys.text("endpoint_suffix"),
        use_managed_identity: keys.flag("use_managed_identity"),
        use_federated_token: keys.flag("use_federated_token"),
        user_assigned_id: keys.text("user_assigned_id"),
        max_buffers: keys.count("max_buffers"),
        buffer_size: keys.count("buffer_size"),
        requests: keys.requests(AZURE_ATTEMPTS),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Request, *};

    fn load(text: &str) -> Result<Backend, String> {
        let config = super::super::parse(text, &Request::default());
        config.map(|config| config.storage.backend).map_err(|problems| super::super::render_problems(&problems))
    }

    #[test]
    fn every_key_arrives() {
        let text = "
storage:
  trace:
    backend: s3
    s3:
      bucket: b
      prefix: p
      endpoint: minio:9000
      region: r
      access_key: a
      secret_key: hunter2
      session_token: hunter3
      insecure: true
      bucket_lookup_type: 2
      part_size: 10485760
      hedge_requests_at: 500ms
      hedge_requests_up_to: 3
      tags: {team: traces}
      metadata: {by: rubato}
      storage_class: STANDARD_IA
      list_blocks_concurrency: 5
      tls_ca_path: /ca
      tls_cert_path: /cert
      tls_key_path: /key
      tls_min_version: VersionTLS13
      sse: {type: SSE-KMS, kms_key_id: k}
      retry_max_attempts: 4
      retry_backoff_initial: 1s
      retry_backoff_max: 2s
";
        let Ok(Backend::Store(storage::backend::Settings::S3(s3))) = load(text) else { panic!("{:?}", load(text)) };
        assert!(!format!("{s3:?}").contains("hunter"));
        let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let expected = S3 {
            bucket: "b".to_owned(),
            prefix: "p".to_owned(),
            endpoint: "minio:9000".to_owned(),
            region: "r".to_owned(),
            access_key: "a".to_owned(),
            secret_key: "hunter2".to_owned().into(),
            session_token: "hunter3".to_owned().into(),
            insecure: true,
            path_style: Some(true),
            dual_stack: false,
            tls: Tls {
                ca: Some("/ca".into()),
                identity: Some(("/cert".into(), "/key".into())),
                insecure_skip_verify: false,
                require_1_3: true,
            },
            encryption: Encryption::Kms("k".to_owned()),
            part_size: 10 << 20,
            tags: pair("team", "traces"),
            metadata: pair("by", "rubato"),
            storage_class: "STANDARD_IA".to_owned(),
            list_blocks_concurrency: 5,
            requests: Requests {
                hedge_at: Duration::from_millis(500),
                hedge_up_to: 3,
                attempts: 4,
                backoff_initial: Duration::from_secs(1),
                backoff_max: Duration::from_secs(2),
                ..Requests::default()
            },
        };
        assert_eq!(*s3, expected);

        let gcs = "storage: {trace: {backend: gcs, gcs: {bucket_name: b, max_retries: 0, object_metadata: {a: b}}}}";
        let Ok(Backend::Store(storage::backend::Settings::Gcs(gcs))) = load(gcs) else { panic!("{:?}", load(gcs)) };
        assert_eq!((gcs.bucket.as_str(), gcs.requests.attempts, gcs.chunk_buffer_size), ("b", 1, 10 << 20));

        let azure = "storage: {trace: {backend: azure, azure: {container_name: c, storage_account_key: hunter2}}}";
        let Ok(Backend::Store(storage::backend::Settings::Azure(azure))) = load(azure) else { panic!("{:?}", load(azure)) };
        assert!(!format!("{azure:?}").contains("hunter"));
        assert_eq!((azure.container.as_str(), azure.max_buffers, azure.buffer_size), ("c", 4, 3 << 20));
        assert_eq!(azure.endpoint_suffix, "blob.core.windows.net");
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (keys, expected) in [
            ("signature_v2: true", "signature_v2: is not available in Rubato: requests are signed with version 4"),
            ("tls_server_name: x", "tls_server_name: is not available in this version of Rubato: the certificate must be for the endpoint"),
            ("tls_min_version: TLS1", "tls_min_version: \"TLS1\" is not one of VersionTLS10, VersionTLS11, VersionTLS12, VersionTLS13"),
            ("tls_cert_path: /x", "tls_cert_path: has no tls_key_path beside it"),
            ("part_size: 5", "part_size: S3 takes no part below 5242880 bytes"),
            ("bucket_lookup_type: 7", "bucket_lookup_type: 7 is not one of 0 (auto), 1 (virtual host), 2 (path)"),
            ("sse: {type: AES}", "sse.type: \"AES\" is not one of SSE-S3, SSE-KMS, SSE-C"),
            ("sse: {type: SSE-C, encryption_key: short}", "sse.encryption_key: SSE-C needs a key of 32 bytes"),
            (
                "sse: {type: SSE-KMS, kms_encryption_context: x}",
                "sse.kms_encryption_context: is not available in this version of Rubato: the bucket's own encryption can have one",
            ),
        ] {
            let text = format!("storage:\n  trace:\n    backend: s3\n    s3: {{{keys}}}\n");
            assert_eq!(load(&text), Err(format!("\n  line 4: storage.trace.s3.{expected}")));
            assert!(load(&text.replace("backend: s3", "backend: gcs")).is_ok(), "keys of a store that isn't used don't matter");
        }
    }
}
