//! Relabelling: what `write_relabel_configs` does to the labels of a series before it is sent to an endpoint.
//!
//! A rule sees the labels (`__name__` among them), changes some or drops the series; rules apply in order. Semantics are those of
//! Prometheus' `relabel_config`: source values joined by a separator, an anchored RE2 expression, `$1` or `${name}` in replacements.

use std::collections::BTreeMap;

use bytes::Bytes;
use md5::{Digest as _, Md5};
use regex::Regex;

use super::protocol::Label;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets the target label to the replacement if the source matches.
    Replace,
    /// Drops series whose source doesn't match.
    Keep,
    /// Drops series whose source matches.
    Drop,
    /// Drops series whose target label isn't the source.
    KeepEqual,
    /// Drops series whose target label is the source.
    DropEqual,
    /// Sets the target label to a hash of the source, modulo.
    HashMod,
    /// Copies labels whose name matches to the name that the replacement gives.
    LabelMap,
    /// Removes labels whose name matches.
    LabelDrop,
    /// Removes labels whose name doesn't match.
    LabelKeep,
    /// Sets the target label to the source in lower case.
    Lowercase,
    /// Sets the target label to the source in upper case.
    Uppercase,
}

impl Action {
    /// The action of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "" | "replace" => Self::Replace,
            "keep" => Self::Keep,
            "drop" => Self::Drop,
            "keepequal" => Self::KeepEqual,
            "dropequal" => Self::DropEqual,
            "hashmod" => Self::HashMod,
            "labelmap" => Self::LabelMap,
            "labeldrop" => Self::LabelDrop,
            "labelkeep" => Self::LabelKeep,
            "lowercase" => Self::Lowercase,
            "uppercase" => Self::Uppercase,
            _ => return None,
        })
    }
}

/// A rule as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Labels whose values are the source.
    pub source_labels: Vec<String>,
    /// Between the values.
    pub separator: String,
    /// The label that is set.
    pub target_label: String,
    /// RE2, matched against the whole source.
    pub regex: String,
    /// Of `hashmod`.
    pub modulus: u64,
    /// May refer to groups of the expression.
    pub replacement: String,
    /// What is done.
    pub action: Action,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            source_labels: Vec::new(),
            separator: ";".to_owned(),
            target_label: String::new(),
            regex: "(.*)".to_owned(),
            modulus: 0,
            replacement: "$1".to_owned(),
            action: Action::Replace,
        }
    }
}

impl Rule {
    /// What is wrong with the rule.
    ///
    /// # Errors
    /// In the words of a message that names the rule.
    pub fn check(&self) -> Result<(), String> {
        compile(&self.regex)?;
        let needs_target = matches!(
            self.action,
            Action::Replace | Action::KeepEqual | Action::DropEqual | Action::HashMod | Action::Lowercase | Action::Uppercase
        );
        if needs_target && self.target_label.is_empty() {
            return Err(format!("action {} requires target_label", self.action.name()));
        }
        if self.action == Action::HashMod && self.modulus == 0 {
            return Err("action hashmod requires a modulus above 0".to_owned());
        }
        Ok(())
    }
}

impl Action {
    fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }
}

/// An expression that must match everything.
fn compile(regex: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?s:{regex})$")).map_err(|_| format!("\"{regex}\" is not a regular expression"))
}

/// The rules of an endpoint, ready to apply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relabel(Vec<(Rule, Regex)>);

type Labels = BTreeMap<Bytes, Bytes>;

impl Relabel {
    /// # Errors
    /// A rule that [`Rule::check`] refuses.
    pub(crate) fn new(rules: &[Rule]) -> Result<Self, String> {
        rules.iter().map(|rule| rule.check().and_then(|()| Ok((rule.clone(), compile(&rule.regex)?)))).collect::<Result<_, _>>().map(Self)
    }

    /// Applies all rules; says whether the series stays. Labels are sorted before and after.
    pub(crate) fn apply(&self, labels: &mut Vec<Label>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let mut map: Labels = std::mem::take(labels).into_iter().map(|label| (label.name, label.value)).collect();
        if !self.0.iter().all(|(rule, regex)| apply(rule, regex, &mut map)) {
            return false;
        }
        labels.extend(map.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| Label { name, value }));
        // Without a name there is no series.
        labels.iter().any(|label| label.name == "__name__")
    }
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn get<'a>(labels: &'a Labels, name: &str) -> &'a str {
    labels.get(name.as_bytes()).map_or("", text)
}

fn set(labels: &mut Labels, name: &str, value: String) {
    if value.is_empty() {
        labels.remove(name.as_bytes());
    } else {
        labels.insert(Bytes::copy_from_slice(name.as_bytes()), value.into());
    }
}

fn apply(rule: &Rule, regex: &Regex, labels: &mut Labels) -> bool {
    let values: Vec<&str> = rule.source_labels.iter().map(|name| get(labels, name)).collect();
    let source = values.join(&rule.separator);
    match rule.action {
        Action::Keep => return regex.is_match(&source),
        Action::Drop => return !regex.is_match(&source),
        Action::KeepEqual => return get(labels, &rule.target_label) == source,
        Action::DropEqual => return get(labels, &rule.target_label) != source,
        Action::Replace => {
            if let Some(captures) = regex.captures(&source) {
                let (mut target, mut value) = (String::new(), String::new());
                captures.expand(&rule.target_label, &mut target);
                captures.expand(&rule.replacement, &mut value);
                if is_label_name(&target) {
                    set(labels, &target, value);
                }
            }
        }
        Action::HashMod => {
            // As Prometheus: the last eight bytes of the digest.
            let digest: [u8; 16] = Md5::digest(source.as_bytes()).into();
            let hash = digest[8..].iter().fold(0_u64, |hash, byte| hash << 8 | u64::from(*byte));
            set(labels, &rule.target_label, (hash % rule.modulus).to_string());
        }
        Action::LabelMap => {
            let copies: Vec<(String, Bytes)> = labels
                .iter()
                .filter(|(name, _)| regex.is_match(text(name)))
                .map(|(name, value)| (regex.replace(text(name), rule.replacement.as_str()).into_owned(), value.clone()))
                .collect();
            labels.extend(copies.into_iter().filter(|(name, _)| is_label_name(name)).map(|(name, value)| (name.into(), value)));
        }
        Action::LabelDrop => labels.retain(|name, _| !regex.is_match(text(name))),
        Action::LabelKeep => labels.retain(|name, _| regex.is_match(text(name))),
        Action::Lowercase => set(labels, &rule.target_label, source.to_lowercase()),
        Action::Uppercase => set(labels, &rule.target_label, source.to_uppercase()),
    }
    true
}

fn is_label_name(name: &str) -> bool {
    let begins = |c: char| c == '_' || c.is_ascii_alphabetic();
    name.starts_with(begins) && name.chars().all(|c| begins(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<Label> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let mut labels: Vec<_> =
            pairs.map(|(name, value)| Label { name: name.to_owned().into(), value: value.to_owned().into() }).collect();
        labels.sort();
        labels
    }

    fn rule(action: &str, source: &[&str], target: &str, regex: &str, replacement: &str) -> Rule {
        Rule {
            source_labels: source.iter().map(|&name| name.to_owned()).collect(),
            target_label: target.to_owned(),
            regex: regex.to_owned(),
            replacement: replacement.to_owned(),
            modulus: 8,
            action: Action::from_name(action).expect("an action"),
            ..Rule::default()
        }
    }

    #[test]
    fn every_action() {
        let before = "__name__=calls __metrics_gen_instance=host a=Foo b=bar";
        for (rule, after) in [
            (rule("labeldrop", &[], "", "__metrics_gen_instance", ""), Some("__name__=calls a=Foo b=bar")),
            (rule("labelkeep", &[], "", "__name__|a", ""), Some("__name__=calls a=Foo")),
            (rule("labelkeep", &[], "", "a", ""), None),
            (
                rule("replace", &["a", "b"], "c", "(.*);(.*)", "${2}-$1"),
                Some("__name__=calls __metrics_gen_instance=host a=Foo b=bar c=bar-Foo"),
            ),
            (rule("replace", &["a"], "x_$1", "F(.*)", "y"), Some("__name__=calls __metrics_gen_instance=host a=Foo b=bar x_oo=y")),
            (rule("replace", &["a"], "c", "oo", "y"), Some(before)),
            (rule("replace", &["a"], "b", "(.*)", ""), Some("__name__=calls __metrics_gen_instance=host a=Foo")),
            (rule("keep", &["a"], "", "Foo", ""), Some(before)),
            (rule("keep", &["a"], "", "Fo", ""), None),
            (rule("drop", &["__name__"], "", "c.*", ""), None),
            (rule("drop", &["a"], "", "x", ""), Some(before)),
            (rule("keepequal", &["a"], "b", "", ""), None),
            (rule("dropequal", &["a"], "b", "", ""), Some(before)),
            (rule("lowercase", &["a"], "a", "", ""), Some("__name__=calls __metrics_gen_instance=host a=foo b=bar")),
            (rule("uppercase", &["b"], "b", "", ""), Some("__name__=calls __metrics_gen_instance=host a=Foo b=BAR")),
            (rule("labelmap", &[], "", "(a)", "copy_$1"), Some("__name__=calls __metrics_gen_instance=host a=Foo b=bar copy_a=Foo")),
        ] {
            let mut labels_now = labels(before);
            let stays = Relabel::new(std::slice::from_ref(&rule)).expect("a rule").apply(&mut labels_now);
            assert_eq!(stays.then_some(labels_now), after.map(labels), "{rule:?}");
        }
    }

    #[test]
    fn hashmod_is_the_tail_of_the_digest() {
        // md5("bar") = 37b51d194a7513e4 5b56f6524f2d51f2; the last byte decides modulo 8.
        let mut after = labels("__name__=calls b=bar");
        assert!(Relabel::new(&[rule("hashmod", &["b"], "shard", "", "")]).expect("a rule").apply(&mut after));
        assert_eq!(after, labels("__name__=calls b=bar shard=2"));
    }

    #[test]
    fn wrong_rules() {
        for (rule, why) in [
            (rule("replace", &[], "", "(.*)", ""), "action replace requires target_label"),
            (Rule { modulus: 0, ..rule("hashmod", &[], "x", "", "") }, "action hashmod requires a modulus above 0"),
            (rule("keep", &[], "", "(", ""), "\"(\" is not a regular expression"),
        ] {
            assert_eq!(rule.check(), Err(why.to_owned()));
        }
        assert_eq!(Action::from_name("keeep"), None);
    }
}
