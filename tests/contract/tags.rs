//! Names and values of attributes for the editor, the builder, filters and variables.

use super::{Fixture, strict};
use crate::harness::client::Answer;

const INTRINSICS: [&str; 25] = [
    "duration",
    "event:name",
    "event:timeSinceStart",
    "instrumentation:name",
    "instrumentation:version",
    "kind",
    "link:spanID",
    "link:traceID",
    "name",
    "rootName",
    "rootServiceName",
    "span:duration",
    "span:id",
    "span:kind",
    "span:name",
    "span:parentID",
    "span:status",
    "span:statusMessage",
    "status",
    "statusMessage",
    "trace:duration",
    "trace:id",
    "trace:rootName",
    "trace:rootService",
    "traceDuration",
];

async fn typed(fixture: &Fixture, tag: &str, parameters: &[(&str, &str)]) -> Vec<(String, String)> {
    let answer = fixture.ask(&format!("/api/v2/search/tag/{tag}/values"), parameters).await;
    let mut values: Vec<_> =
        strict::read::<strict::TypedTagValues>(&answer).tag_values.into_iter().map(|value| (value.kind, value.value)).collect();
    values.sort();
    values
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(kind, value)| ((*kind).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_by_scope_with_the_intrinsics() {
    let fixture = Fixture::get().await;
    let answer = fixture.ask("/api/v2/search/tags", &[("limit", "5000")]).await;
    assert!(answer.json().get("data").is_none(), "Grafana would unwrap it");
    let scopes = strict::read::<strict::TagScopes>(&answer).scopes;
    let tags = |name: &str| scopes.iter().find(|scope| scope.name == name).expect("the scope").tags.clone();
    assert_eq!(tags("resource"), ["deployment.environment", "k8s.pod.name", "service.name"]);
    let span = ["customer", "db.system.name", "http.method", "http.status_code", "ratio", "retried", "skus"];
    assert_eq!(tags("span"), span);
    assert_eq!(tags("event"), ["exception.message", "exception.stacktrace", "exception.type"]);
    assert_eq!(tags("intrinsic"), INTRINSICS);
    assert!(scopes.iter().all(|scope| !scope.tags.is_empty()), "{scopes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_scope_can_be_asked_for() {
    let fixture = Fixture::get().await;
    let scopes = async |scope: &str| {
        let answer = fixture.ask("/api/v2/search/tags", &[("scope", scope)]).await;
        strict::read::<strict::TagScopes>(&answer).scopes.into_iter().map(|scope| scope.name).collect::<Vec<_>>()
    };
    assert_eq!(scopes("resource").await, ["resource"]);
    assert_eq!(scopes("intrinsic").await, ["intrinsic"]);
    assert!(scopes("trace").await.is_empty());
    assert!(scopes("none").await.contains(&"intrinsic".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_version_is_a_flat_list_without_intrinsics() {
    let fixture = Fixture::get().await;
    let names = strict::read::<strict::TagNames>(&fixture.ask("/api/search/tags", &[]).await).tag_names;
    assert!(names.is_sorted() && names.contains(&"service.name".to_owned()) && !names.contains(&"status".to_owned()), "{names:?}");
    let intrinsic = strict::read::<strict::TagNames>(&fixture.ask("/api/search/tags", &[("scope", "intrinsic")]).await).tag_names;
    assert_eq!(intrinsic, INTRINSICS);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_have_the_type_that_decides_the_operators() {
    let fixture = Fixture::get().await;
    let services = [("string", "clock"), ("string", "payments"), ("string", "shop-backend"), ("string", "worker")];
    // As Grafana asks, the tag once more among the parameters.
    assert_eq!(typed(fixture, "resource.service.name", &[("tag", "resource.service.name"), ("limit", "5000")]).await, pairs(&services));
    assert_eq!(typed(fixture, ".service.name", &[]).await, pairs(&services));
    assert_eq!(typed(fixture, "span.http.status_code", &[]).await, pairs(&[("int", "200"), ("int", "500")]));
    assert_eq!(typed(fixture, "span.ratio", &[]).await, pairs(&[("float", "0.5")]));
    assert_eq!(typed(fixture, "span.retried", &[]).await, pairs(&[("bool", "true")]));
    assert_eq!(typed(fixture, "event.exception.type", &[]).await, pairs(&[("string", "IOError")]));
    assert_eq!(typed(fixture, "rootName", &[("limit", "2")]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn enums_are_keywords() {
    let fixture = Fixture::get().await;
    let keywords = |values: &[&str]| values.iter().map(|value| ("keyword".to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    for tag in ["status", "span:status"] {
        assert_eq!(typed(fixture, tag, &[]).await, keywords(&["error", "ok", "unset"]));
    }
    for tag in ["kind", "span:kind"] {
        let kinds = ["client", "consumer", "internal", "producer", "server", "unspecified"];
        assert_eq!(typed(fixture, tag, &[]).await, keywords(&kinds));
    }
    for tag in ["duration", "traceDuration", "trace:duration", "trace:id", "span:id", "span:parentID"] {
        assert!(typed(fixture, tag, &[]).await.is_empty(), "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_typed_filters_are_no_errors() {
    let fixture = Fixture::get().await;
    let all = typed(fixture, "resource.service.name", &[]).await;
    for q in ["", "{", "{ }", "{ resource.service.name = }", "{ status = error } >> { }", "nonsense", "{ .a = \"", "{ status = error || }"]
    {
        let found = typed(fixture, "resource.service.name", &[("q", q)]).await;
        assert!(!found.is_empty() && (found == all || q.contains("status")), "{q}: {found:?}");
    }
    let failed = pairs(&[("string", "shop-backend")]);
    for q in ["{ status = error }", "{ status = error && span.x = }", "{ status=error && resource.cluster = }"] {
        assert_eq!(typed(fixture, "resource.service.name", &[("q", q)]).await, failed, "{q}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_the_first_version_are_texts() {
    let fixture = Fixture::get().await;
    let values = async |tag: &str| {
        let answer: Answer = fixture.ask(&format!("/api/search/tag/{tag}/values"), &[]).await;
        strict::read::<strict::TagValues>(&answer).tag_values
    };
    assert_eq!(values("service.name").await, ["clock", "payments", "shop-backend", "worker"]);
    assert_eq!(values("http.status_code").await, ["200", "500"]);
    assert_eq!(values("status.code").await, ["unset", "ok", "error"]);
    assert_eq!(values("error").await, ["true"]);
    assert!(values("a/b%20c").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_alternatives_are_refused() {
    let fixture = Fixture::get().await;
    let alternatives = |count: usize| {
        let all: Vec<_> = (0..count).map(|number| format!("span.a{number} = 1")).collect();
        format!("{{ {} }}", all.join(" || "))
    };
    let ask = async |tag: &str, count: usize| {
        let answer = fixture.ask(&format!("/api/v2/search/tag/{tag}/values"), &[("q", &alternatives(count))]).await;
        (answer.status, answer.text())
    };
    assert_eq!(ask("span.x", 100).await.0, 200);
    let refused = "maximum condition groups reached (limit: 100). Reduce the number of OR conditions in the query".to_owned();
    assert_eq!(ask("span.x", 101).await, (400, refused.clone()));
    assert_eq!(ask(".x", 51).await, (400, refused), "without a scope they count twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn language_models_get_values_by_type() {
    let fixture = Fixture::get().await;
    let path = "/api/v2/search/tag/span.http.status_code/values";
    let answer = fixture.client().get_as(path, "application/vnd.grafana.llm").await;
    assert_eq!(answer.headers["content-type"], "application/vnd.grafana.llm+json");
    assert_eq!(answer.json()["tagValues"], serde_json::json!({"int": ["200", "500"]}));
}
