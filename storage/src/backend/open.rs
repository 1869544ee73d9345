//! From settings to a [`Store`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    Attribute, Attributes, ClientOptions, ObjectStore, RetryConfig, TagSet, local::LocalFileSystem, memory::InMemory, path::Path,
};
use prometheus::Registry;

use super::{
    Store, azure,
    bucket::Bucket,
    gcs,
    http::Http,
    retry::Retry,
    s3,
    settings::{Requests, Settings, Tls},
    upload::Said,
};

/// What a store needs beside its settings.
#[derive(Clone, Copy)]
pub struct Components<'a> {
    /// Where metrics are counted.
    pub registry: &'a Registry,
    /// Decides the pauses between retries.
    pub seed: u64,
    /// Variables of the environment, where stores' own tools look for credentials too.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Components<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Components").field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A key is missing or doesn't fit.
    #[error("storage.trace.{key}: {why}")]
    Setting {
        /// The key, below `storage.trace`.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No credentials were found.
    #[error("failed to get credentials: {0}")]
    Credentials(String),
    /// A file could not be read, or a folder not be made.
    #[error("cannot open \"{path}\"")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no certificate or no key.
    #[error("\"{path}\" holds no usable PEM")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What the TLS library said.
        #[source]
        source: reqwest::Error,
    },
    /// There can be no connections.
    #[error("cannot set up connections to the bucket")]
    Client(#[source] reqwest::Error),
    /// The client of the store refused the settings.
    #[error("the settings of the bucket don't fit together")]
    Refused(#[from] object_store::Error),
    /// Metrics of this store are registered already.
    #[error("cannot register the metrics of the bucket")]
    Metrics(#[from] prometheus::Error),
}

/// Opens a store. Nothing is asked from it yet, but credentials from whoever hands them out.
///
/// # Errors
/// The settings don't fit, or there are no credentials.
pub async fn open(settings: &Settings, components: Components<'_>) -> Result<Store, OpenError> {
    match settings {
        Settings::Memory => Ok(Store::new(Arc::new(InMemory::new()), "")),
        Settings::Local(path) => {
            std::fs::create_dir_all(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
            // With fsync: the log forgets what a block holds.
            let folder = LocalFileSystem::new_with_prefix(path)?.with_fsync(true).with_automatic_cleanup(true);
            Ok(Store::new(Arc::new(folder), ""))
        }
        Settings::S3(settings) => {
            let transport = Transport::new(&settings.requests, &settings.tls, components)?;
            let client = s3::client(settings, &transport, components.env).await?;
            let mut attributes = metadata(&settings.metadata);
            if !settings.storage_class.is_empty() {
                attributes.insert(Attribute::StorageClass, settings.storage_class.clone().into());
            }
            let mut tags = TagSet::default();
            for (key, value) in &settings.tags {
                tags.push(key, value);
            }
            let store = transport.store(client, &settings.prefix, "s3.prefix", tags, attributes)?;
            Ok(with_parts(store, settings.part_size, 0).with_list_ranges(settings.list_blocks_concurrency))
        }
        Settings::Gcs(settings) => {
            let tls = Tls { insecure_skip_verify: settings.insecure, ..Tls::default() };
            let transport = Transport::new(&settings.requests, &tls, components)?;
            let client = gcs::client(settings, &transport, components.env)?;
            let mut attributes = metadata(&settings.object_metadata);
            if !settings.object_cache_control.is_empty() {
                attributes.insert(Attribute::CacheControl, settings.object_cache_control.clone().into());
            }
            let store = transport.store(client, &settings.prefix, "gcs.prefix", TagSet::default(), attributes)?;
            Ok(with_parts(store, settings.chunk_buffer_size, 0).with_list_ranges(settings.list_blocks_concurrency))
        }
        Settings::Azure(settings) => {
            let transport = Transport::new(&settings.requests, &Tls::default(), components)?;
            let client = azure::client(settings, &transport, components.env)?;
            let store = transport.store(client, &settings.prefix, "azure.prefix", TagSet::default(), Attributes::new())?;
            Ok(with_parts(store, settings.buffer_size, settings.max_buffers))
        }
    }
}

/// 0 is not said.
fn with_parts(store: Store, bytes: usize, in_flight: usize) -> Store {
    let said = |written: usize| Some(written).filter(|&written| written > 0);
    Store { parts: Said { bytes: said(bytes), in_flight: said(in_flight) }, ..store }
}

fn metadata(pairs: &std::collections::BTreeMap<String, String>) -> Attributes {
    pairs.iter().map(|(key, value)| (Attribute::Metadata(key.clone().into()), value.clone())).collect()
}

/// The way to a store in a network.
pub(super) struct Transport {
    pub(super) http: Http,
    retry: Arc<Retry>,
    timeout: Duration,
}

impl Transport {
    fn new(requests: &Requests, tls: &Tls, components: Components<'_>) -> Result<Self, OpenError> {
        let retry = Arc::new(Retry::new(requests, components.seed, components.registry)?);
        let http = Http::new(tls, requests, Arc::clone(&retry), components.registry)?;
        Ok(Self { http, retry, timeout: requests.timeout })
    }

    /// Options of a client: connections are ours, so only what it decides itself is left.
    pub(super) fn options(&self, plain_http: bool) -> ClientOptions {
        ClientOptions::new().with_allow_http(plain_http)
    }

    /// Retries of a client: none, since [`Http`] has them.
    pub(super) fn no_retries(&self) -> RetryConfig {
        RetryConfig { max_retries: 0, ..RetryConfig::default() }
    }

    fn store(
        self,
        client: Arc<dyn ObjectStore>,
        prefix: &str,
        key: &'static str,
        tags: TagSet,
        attributes: Attributes,
    ) -> Result<Store, OpenError> {
        Path::parse(prefix).map_err(|error| OpenError::Setting { key, why: error.to_string() })?;
        let bucket = Bucket { client, retry: self.retry, timeout: self.timeout, tags, attributes };
        Ok(Store::new(Arc::new(bucket), prefix))
    }
}
