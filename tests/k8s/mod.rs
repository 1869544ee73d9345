//! What `k8s/` promises, looked at as the cluster would see it: both trees are rendered by `kubectl kustomize`, each object is read into
//! the type of its kind and written back, which finds misspelt and misplaced fields, and the promises of the deployment are checked one by one.

mod configuration;
mod deployment;
mod mixin;
mod monitoring;
mod objects;
mod promises;
mod references;

use std::{collections::HashSet, path::PathBuf, process::Command};

use serde_json::Value;

/// One object of a rendered tree.
#[derive(Clone, Debug)]
struct Object(Value);

impl Object {
    /// What lies at a JSON pointer; null where there is nothing.
    fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self.text("/kind")
    }

    fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// How failures call it.
    fn id(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// The pods that it makes, if it makes any.
    fn pods(&self) -> Option<Object> {
        let template = self.at("/spec/template");
        (!template.is_null()).then(|| Self(template.clone()))
    }

    fn containers(&self) -> Vec<Object> {
        let lists = ["/spec/initContainers", "/spec/containers"].map(|list| list_of(self.at(list)));
        lists.concat().into_iter().map(Self).collect()
    }

    fn label(&self, name: &str) -> &str {
        self.at("/metadata/labels").get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

fn list_of(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn tree(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("k8s").join(name)
}

/// Renders a tree, or says why not and returns `None` where there is no `kubectl`.
fn render(name: &str) -> Option<Vec<Object>> {
    let output = match Command::new("kubectl").arg("kustomize").arg(tree(name)).output() {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "kubectl is not installed: {error}");
            eprintln!("skipped: kubectl cannot be started: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "kubectl kustomize {name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("YAML is text");
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let objects: Vec<Object> = documents
        .map(|document| Object(<Value as serde::Deserialize>::deserialize(document).expect("kubectl renders YAML without repeated keys")))
        .collect();
    let mut seen = HashSet::new();
    for object in &objects {
        assert_eq!(object.text("/metadata/namespace"), "tempo", "namespace of {}", object.id());
        assert!(seen.insert(object.id()), "{} is there twice", object.id());
    }
    Some(objects)
}

/// The six roles and what runs them.
const ROLES: [(&str, &str); 6] = [
    ("distributor", "Deployment"),
    ("querier", "Deployment"),
    ("query-frontend", "Deployment"),
    ("metrics-generator", "Deployment"),
    ("ingester", "StatefulSet"),
    ("compactor", "StatefulSet"),
];

fn workload<'a>(objects: &'a [Object], role: &str) -> &'a Object {
    let (_, kind) = ROLES.into_iter().find(|(name, _)| *name == role).expect("a role");
    let name = format!("tempo-{role}");
    objects.iter().find(|object| object.kind() == kind && object.name() == name).unwrap_or_else(|| panic!("no {kind} {name}"))
}
