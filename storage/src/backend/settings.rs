//! Where blocks live and how the way there is gone: Tempo's keys of `storage.trace.{local,s3,gcs,azure}` (config.md §5.4–5.6) as plain
//! data.
//!
//! What is written here is what is meant: defaults are in place, and what can't be honoured was refused by whoever read the
//! configuration. Secrets are [`Secret`]s, which print as asterisks.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

/// Which store, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// A folder, made when it is missing.
    Local(PathBuf),
    /// S3 and what speaks its protocol.
    S3(Box<S3>),
    /// Google Cloud Storage.
    Gcs(Box<Gcs>),
    /// Azure Blob Storage.
    Azure(Box<Azure>),
    /// The memory of this process: for tests.
    Memory,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = |prefix: &str| if prefix.is_empty() { String::new() } else { format!("/{}", prefix.trim_matches('/')) };
        match self {
            Settings::Local(path) => write!(f, "{}", path.display()),
            Settings::S3(s3) if s3.endpoint.is_empty() => write!(f, "s3://{}{}", s3.bucket, folder(&s3.prefix)),
            Settings::S3(s3) => write!(f, "s3://{}{} at {}", s3.bucket, folder(&s3.prefix), s3.endpoint),
            Settings::Gcs(gcs) => write!(f, "gs://{}{}", gcs.bucket, folder(&gcs.prefix)),
            Settings::Azure(azure) => write!(f, "azure://{}/{}{}", azure.account, azure.container, folder(&azure.prefix)),
            Settings::Memory => f.write_str("memory"),
        }
    }
}

/// Text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "********" })
    }
}

/// How requests are made, whatever the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests {
    /// A read that has not been answered for this long is sent once more; zero is never.
    pub hedge_at: Duration,
    /// Reads of the same thing under way at the same time.
    pub hedge_up_to: usize,
    /// Attempts of a request, the first included.
    pub attempts: u32,
    /// Pause before the second attempt; each further one is twice as long.
    pub backoff_initial: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// How long a request may go without an answer, beside the time that its body takes.
    pub timeout: Duration,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            hedge_at: Duration::ZERO,
            hedge_up_to: 2,
            attempts: 10,
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        }
    }
}

/// Encryption of the way to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM of authorities to believe beside the system's.
    pub ca: Option<PathBuf>,
    /// PEM of the certificate and of the key to show to the store.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Believe any certificate.
    pub insecure_skip_verify: bool,
    /// Refuse TLS 1.2. Older versions are always refused.
    pub require_1_3: bool,
}

/// Encryption of objects in S3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Whatever the bucket does.
    #[default]
    Bucket,
    /// With keys of S3.
    S3,
    /// With a key of KMS; empty: the account's default key.
    Kms(String),
    /// With this key, 32 bytes, which S3 forgets.
    Customer(Secret),
}

/// `storage.trace.s3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3 {
    /// Bucket.
    pub bucket: String,
    /// Folder within the bucket.
    pub prefix: String,
    /// `host[:port]`; empty: AWS in the region.
    pub endpoint: String,
    /// Region; empty: the one that the endpoint names, or `us-east-1`.
    pub region: String,
    /// Empty: found in the environment, in files, or asked from the instance.
    pub access_key: String,
    /// Belongs to the access key.
    pub secret_key: Secret,
    /// Belongs to a temporary access key.
    pub session_token: Secret,
    /// Plain HTTP.
    pub insecure: bool,
    /// Whether the bucket is part of the path; none: everywhere but on AWS.
    pub path_style: Option<bool>,
    /// Ask AWS by IPv6 too.
    pub dual_stack: bool,
    /// Encryption of the connection.
    pub tls: Tls,
    /// Encryption of objects.
    pub encryption: Encryption,
    /// Bytes of a part of an upload; 0: ours.
    pub part_size: usize,
    /// Tags of objects.
    pub tags: BTreeMap<String, String>,
    /// Metadata of objects.
    pub metadata: BTreeMap<String, String>,
    /// Storage class of objects; empty: the bucket's.
    pub storage_class: String,
    /// Ranges in which blocks are listed at the same time.
    pub list_blocks_concurrency: usize,
    /// Time-outs, retries, hedging.
    pub requests: Requests,
}

/// `storage.trace.gcs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gcs {
    /// Bucket.
    pub bucket: String,
    /// Folder within the bucket.
    pub prefix: String,
    /// URL of the API; empty: Google's.
    pub endpoint: String,
    /// Neither credentials nor a valid certificate: for emulators.
    pub insecure: bool,
    /// Bytes of a part of an upload; 0: ours.
    pub chunk_buffer_size: usize,
    /// `Cache-Control` of objects.
    pub object_cache_control: String,
    /// Metadata of objects.
    pub object_metadata: BTreeMap<String, String>,
    /// Ranges in which blocks are listed at the same time.
    pub list_blocks_concurrency: usize,
    /// Time-outs, retries, hedging.
    pub requests: Requests,
}

/// `storage.trace.azure`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Azure {
    /// Storage account; empty: `AZURE_STORAGE_ACCOUNT`.
    pub account: String,
    /// Its key; empty: `AZURE_STORAGE_KEY`.
    pub key: Secret,
    /// Container.
    pub container: String,
    /// Folder within the container.
    pub prefix: String,
    /// What follows the account's name in the host; one that doesn't begin with `blob.` is a host of an emulator.
    pub endpoint_suffix: String,
    /// Ask the instance for a token.
    pub use_managed_identity: bool,
    /// Exchange the token that Kubernetes wrote into a file.
    pub use_federated_token: bool,
    /// Client id of the managed identity; empty: the instance's own.
    pub user_assigned_id: String,
    /// Parts of an upload under way at the same time; 0: ours.
    pub max_buffers: usize,
    /// Bytes of a part of an upload; 0: ours.
    pub buffer_size: usize,
    /// Time-outs, retries, hedging.
    pub requests: Requests,
}
