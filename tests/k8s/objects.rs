//! Every object is what its kind allows.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Object, render};

/// The parts of Istio's kinds that the tree uses, strictly.
mod istio {
    use std::collections::BTreeMap;

    use super::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Resource<S> {
        #[serde(rename = "apiVersion")]
        api_version: String,
        kind: String,
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
        spec: S,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct PeerAuthentication {
        selector: Selector,
        mtls: Mtls,
        port_level_mtls: BTreeMap<String, Mtls>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Selector {
        match_labels: BTreeMap<String, String>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Mtls {
        mode: Mode,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "UPPERCASE")]
    enum Mode {
        Strict,
        Permissive,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Sidecar {
        egress: Vec<Egress>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Egress {
        hosts: Vec<String>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Telemetry {
        tracing: Vec<Tracing>,
        access_logging: Vec<AccessLogging>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Tracing {
        disable_span_reporting: bool,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct AccessLogging {
        disabled: bool,
    }
}

/// Reads an object as its type and writes it again; what does not come back the same was misspelt, misplaced or of the wrong type.
fn check<T: DeserializeOwned + Serialize>(object: &Object) -> Vec<String> {
    let typed: T = serde_json::from_value(object.0.clone()).unwrap_or_else(|error| panic!("{}: {error}", object.id()));
    let again = serde_json::to_value(typed).expect("what was read can be written");
    let mut lost = Vec::new();
    compare(&object.0, &again, &object.id(), &mut lost);
    lost
}

/// Everything of `written` that `read` does not say, too.
fn compare(written: &Value, read: &Value, path: &str, lost: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                match read.get(key) {
                    Some(there) => compare(value, there, &format!("{path}/{key}"), lost),
                    // An empty object says nothing: `emptyDir: {}`.
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => {}
                    None => lost.push(format!("{path}/{key}: no such field")),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (value, there)) in written.iter().zip(read).enumerate() {
                compare(value, there, &format!("{path}/{index}"), lost);
            }
        }
        _ if written == read => {}
        _ => lost.push(format!("{path}: {written} is read as {read}")),
    }
}

fn check_by_kind(object: &Object) -> Vec<String> {
    match (object.text("/apiVersion"), object.kind()) {
        ("apps/v1", "Deployment") => check::<Deployment>(object),
        ("apps/v1", "StatefulSet") => check::<StatefulSet>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => check::<HorizontalPodAutoscaler>(object),
        ("batch/v1", "Job") => check::<Job>(object),
        ("v1", "ConfigMap") => check::<ConfigMap>(object),
        // Its text is written for people; the API server takes it as the data that it is.
        ("v1", "Secret") => check::<Secret>(object),
        ("v1", "Service") => check::<Service>(object),
        ("v1", "ServiceAccount") => check::<ServiceAccount>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => check::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => check::<PodDisruptionBudget>(object),
        ("security.istio.io/v1", "PeerAuthentication") => check::<istio::Resource<istio::PeerAuthentication>>(object),
        ("networking.istio.io/v1", "Sidecar") => check::<istio::Resource<istio::Sidecar>>(object),
        ("telemetry.istio.io/v1", "Telemetry") => check::<istio::Resource<istio::Telemetry>>(object),
        (version, kind) => vec![format!("{}: {version} {kind} is not a kind that this test knows", object.id())],
    }
}

#[test]
fn every_object_parses_with_no_unknown_field() {
    for name in ["base", "overlays/dev"] {
        let Some(objects) = render(name) else { return };
        let problems: Vec<String> = objects.iter().flat_map(check_by_kind).collect();
        assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n"));
    }
}

#[test]
fn a_misspelt_field_is_found() {
    let object = |text: &str| Object(serde_json::from_str(text).expect("JSON"));
    let service = object(r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"clusterIp":"None"}}"#);
    assert_eq!(check_by_kind(&service), ["Service x/spec/clusterIp: no such field"]);
    let quantity =
        object(r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"x"},"automountServiceAccountToken":false,"secret":[]}"#);
    assert_eq!(check_by_kind(&quantity), ["ServiceAccount x/secret: no such field"]);
}
