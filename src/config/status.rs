//! The configuration as `/status` shows it: YAML with secrets masked.

use std::fmt::Write as _;

use super::{
    overrides::{Entry, Overrides},
    scalar::{self, Value},
    schema::{Kind, Leaf, Status},
    settings::Settings,
};

/// Which keys are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All, with the values that hold.
    Effective,
    /// Only those that differ from their defaults.
    Diff,
    /// All, with their defaults.
    Defaults,
    /// Those of `Diff` with their secrets: what a file would have to say.
    File,
}

impl Mode {
    /// The mode of a `?mode=` parameter.
    ///
    /// # Errors
    /// The text of the answer 500.
    pub(crate) fn parse(text: Option<&str>) -> Result<Mode, String> {
        match text {
            None | Some("") => Ok(Mode::Effective),
            Some("diff") => Ok(Mode::Diff),
            Some("defaults") => Ok(Mode::Defaults),
            Some(other) => Err(format!("unknown value for mode query parameter: {other}")),
        }
    }
}

/// What a secret looks like.
const MASK: &str = "********";

/// Names below free values (remote_write and the like) whose text is a secret.
const SECRET_NAMES: &[&str] = &["password", "credentials", "bearer_token", "client_secret", "secret_key", "access_key_secret", "sas_token"];

impl Mode {
    /// Whether keys are left out that have their defaults.
    fn is_partial(self) -> bool {
        matches!(self, Self::Diff | Self::File)
    }

    /// How the blocks of a list are shown.
    fn of_items(self) -> Self {
        if self == Self::File { Self::File } else { Self::Diff }
    }
}

/// The settings as a YAML block map; empty settings are `{}`.
pub(crate) fn render(settings: &Settings, mode: Mode) -> String {
    let mut out = String::new();
    block(settings, "", 0, mode, &mut out);
    if out.is_empty() { "{}\n".to_owned() } else { out }
}

fn block(settings: &Settings, path: &str, indent: usize, mode: Mode, out: &mut String) {
    for child in settings.schema().children(path).unwrap_or_default() {
        let name = child.rsplit('.').next().unwrap_or(child);
        if let Some(leaf) = settings.schema().leaf(child) {
            if leaf.status != Status::Legacy && (!mode.is_partial() || settings.differs(child)) {
                _ = write!(out, "{:indent$}{}:", "", key(name));
                let shown = if mode == Mode::Defaults { &leaf.default } else { settings.get(child) };
                if mode == Mode::File {
                    value(shown, Some(leaf.kind), indent, mode, out);
                } else {
                    value(&masked(leaf, shown), Some(leaf.kind), indent, mode, out);
                }
            }
        } else {
            let mut body = String::new();
            block(settings, child, indent + 4, mode, &mut body);
            if !body.is_empty() {
                _ = write!(out, "{:indent$}{}:\n{body}", "", key(name));
            }
        }
    }
}

fn masked(leaf: &Leaf, shown: &Value) -> Value {
    match (leaf.kind, shown) {
        (Kind::Secret, Value::Text(text)) if !text.is_empty() => Value::Text(MASK.to_owned()),
        (Kind::Any, free) => mask_free(free),
        _ => shown.clone(),
    }
}

fn mask_free(free: &Value) -> Value {
    match free {
        Value::List(items) => Value::List(items.iter().map(mask_free).collect()),
        Value::Map(entries) => {
            let entry = |(name, value): &(String, Value)| {
                let secret = SECRET_NAMES.contains(&name.as_str()) && matches!(value, Value::Text(_) | Value::Int(_) | Value::Float(_));
                let authorization = name.eq_ignore_ascii_case("authorization") && matches!(value, Value::Text(_));
                (name.clone(), if secret || authorization { Value::Text(MASK.to_owned()) } else { mask_free(value) })
            };
            Value::Map(entries.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}

/// Writes a value behind its key's colon, or behind a list's dash, with the line's end.
fn value(shown: &Value, kind: Option<Kind>, indent: usize, mode: Mode, out: &mut String) {
    match shown {
        Value::List(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                _ = write!(out, "{:1$}-", "", indent + 2);
                nested(item, indent + 2, mode, out);
            }
        }
        Value::Map(entries) if !entries.is_empty() => {
            out.push('\n');
            map(entries, indent + 4, mode, out);
        }
        Value::Block(settings) => {
            out.push('\n');
            block(settings, "", indent + 4, mode.of_items(), out);
        }
        scalar => _ = writeln!(out, " {}", inline(scalar, kind)),
    }
}

/// A list's item: a map begins on the line of its dash.
fn nested(item: &Value, indent: usize, mode: Mode, out: &mut String) {
    let mut body = String::new();
    match item {
        Value::Map(entries) if !entries.is_empty() => map(entries, indent + 2, mode, &mut body),
        Value::Block(settings) => block(settings, "", indent + 2, mode.of_items(), &mut body),
        other => return value(other, None, indent, mode, out),
    }
    out.push(' ');
    out.push_str(if body.is_empty() { "{}\n" } else { body.trim_start() });
}

fn map(entries: &[(String, Value)], indent: usize, mode: Mode, out: &mut String) {
    for (name, entry) in entries {
        _ = write!(out, "{:indent$}{}:", "", key(name));
        value(entry, None, indent, mode, out);
    }
}

fn inline(shown: &Value, kind: Option<Kind>) -> String {
    match (shown, kind) {
        (Value::Null, _) => "null".to_owned(),
        (Value::Bool(value), _) => value.to_string(),
        (Value::Int(value), _) => value.to_string(),
        (Value::Uint(bytes), Some(Kind::Size)) => scalar::format_size(*bytes),
        (Value::Uint(value), _) => value.to_string(),
        (Value::Float(value), _) => value.to_string(),
        (Value::Duration(nanos), Some(Kind::PromDuration)) => scalar::format_prom_duration(*nanos),
        (Value::Duration(nanos), _) => scalar::format_duration(*nanos),
        (Value::Text(text), _) => quote(text),
        (Value::List(_), _) => "[]".to_owned(),
        (Value::Map(_) | Value::Block(_), _) => "{}".to_owned(),
    }
}

/// The default of a key on one line, unquoted.
pub(super) fn default_text(leaf: &Leaf) -> String {
    match &leaf.default {
        Value::Text(text) => text.clone(),
        Value::List(_) => String::new(),
        other => inline(other, Some(leaf.kind)),
    }
}

fn key(name: &str) -> String {
    quote(name)
}

/// Text as a YAML scalar: plain when that reads back as the same text, else in double quotes.
pub(crate) fn quote(text: &str) -> String {
    let plain_start = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '$'));
    let plain_rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-$+=~@%(), :;".contains(c));
    let ambiguous = text.contains(": ") || text.ends_with([':', ' ']) || text.contains(" #");
    let reads_as_text = scalar::resolve(text, true) == Value::Text(text.to_owned()) && scalar::boolean(text).is_none();
    if plain_start && plain_rest && !ambiguous && reads_as_text {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}

/// `/status/runtime_config`: the entries of the per-tenant file as they were written, or with every key.
pub(crate) fn runtime_config(overrides: &Overrides, mode: Mode) -> String {
    let entries = overrides.entries();
    if entries.is_empty() {
        return "overrides: {}\n".to_owned();
    }
    let mut out = String::from("overrides:\n");
    for (tenant, entry) in entries.iter() {
        let mut body = String::new();
        block(&entry.settings, "", 8, mode, &mut body);
        let body = if body.is_empty() { " {}\n".to_owned() } else { format!("\n{body}") };
        _ = write!(out, "    {}:{body}", key(tenant));
    }
    out
}

/// What was written for a tenant, as JSON.
pub(crate) fn tenant_json(entry: &Entry) -> serde_json::Value {
    settings_json(&entry.settings)
}

/// What was written of settings, as JSON.
pub(super) fn settings_json(settings: &Settings) -> serde_json::Value {
    let mut root = serde_json::Map::new();
    for leaf in settings.written_leaves() {
        let mut object = &mut root;
        let mut names: Vec<&str> = leaf.path.split('.').collect();
        let last = names.pop().unwrap_or_default();
        for name in names {
            let child = object.entry(name).or_insert_with(|| serde_json::Value::Object(serde_json::Map::new()));
            match child {
                serde_json::Value::Object(map) => object = map,
                _ => return serde_json::Value::Object(root),
            }
        }
        object.insert(last.to_owned(), json(&masked(leaf, settings.get(&leaf.path)), leaf.kind));
    }
    serde_json::Value::Object(root)
}

/// A value as one line of text; what is very long is cut, and then told apart by its hash.
pub(super) fn line(settings: &Settings, path: &str) -> String {
    const LONGEST: usize = 160;
    let kind = settings.schema().leaf(path).map_or(Kind::Text, |leaf| leaf.kind);
    let text = json(settings.get(path), kind).to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}… ({:08x})", &text[..at], storage::ring::fnv1a_32(text.as_bytes())),
        None => text,
    }
}

fn json(shown: &Value, kind: Kind) -> serde_json::Value {
    match shown {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Duration(_) => inline(shown, Some(kind)).into(),
        Value::List(items) => items.iter().map(|item| json(item, kind)).collect(),
        Value::Map(entries) => entries.iter().map(|(name, value)| (name.clone(), json(value, kind))).collect(),
        Value::Block(settings) => {
            settings.schema().leaves().map(|leaf| (leaf.path.clone(), json(settings.get(&leaf.path), leaf.kind))).collect()
        }
    }
}
