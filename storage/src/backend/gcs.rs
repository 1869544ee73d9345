//! Google Cloud Storage (config.md §5.5). Credentials: `GOOGLE_APPLICATION_CREDENTIALS`, the file that `gcloud` leaves, or the machine's
//! service account.

use std::sync::Arc;

use object_store::{
    ObjectStore, StaticCredentialProvider,
    gcp::{GcpCredential, GoogleCloudStorageBuilder},
};

use super::{
    open::{OpenError, Transport},
    settings::Gcs,
};

/// A client for the bucket.
pub(super) fn client(
    settings: &Gcs,
    transport: &Transport,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    if settings.bucket.is_empty() {
        return Err(OpenError::Setting { key: "gcs.bucket_name", why: "must not be empty".to_owned() });
    }
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&settings.bucket)
        .with_client_options(transport.options(settings.insecure))
        .with_retry(transport.no_retries())
        .with_http_connector(transport.http.clone());
    if settings.insecure {
        // Without a provider of its own the client asks the machine for a token, even one that is not used.
        let none = StaticCredentialProvider::new(GcpCredential { bearer: String::new() });
        builder = builder.with_skip_signature(true).with_credentials(Arc::new(none));
    }
    if !settings.endpoint.is_empty() {
        builder = builder.with_base_url(base_url(&settings.endpoint));
    }
    if let Some(path) = env("GOOGLE_APPLICATION_CREDENTIALS").filter(|path| !path.is_empty() && !settings.insecure) {
        builder = builder.with_application_credentials(path);
    }
    Ok(Arc::new(builder.build()?))
}

/// The endpoint without the path of the JSON API, which Tempo's client speaks and ours doesn't.
fn base_url(endpoint: &str) -> &str {
    let endpoint = endpoint.trim_end_matches('/');
    endpoint.strip_suffix("/storage/v1").unwrap_or(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_json_api_is_cut_off() {
        for endpoint in ["http://fake:4443", "http://fake:4443/", "http://fake:4443/storage/v1/", "http://fake:4443/storage/v1"] {
            assert_eq!(base_url(endpoint), "http://fake:4443");
        }
    }
}
