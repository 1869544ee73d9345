//! Names and values of attributes, for editors and variables.
//!
//! All spans of the range are looked at, recent ones and those of blocks, newest blocks first, with no more decoded than the scope asks for.
//! Answers are bounded: by bytes, by number of entries, by number of known entries in a row. Reaching a bound is no error; what was found is
//! the answer. Each block gathers into its own bounded set, and the sets are merged in the order of the blocks, so the answer doesn't depend
//! on which block was read first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::Span,
};
use storage::{
    block::{Meta, Projection, Trace},
    id::Tenant,
};

use super::{Engine, Flow, QueryError, TimeRange, Visitor};
use crate::traceql::{Filter, TraceView};

/// Where attributes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TagScope {
    /// Events of spans.
    Event,
    /// Scopes of instrumentation.
    Instrumentation,
    /// Links of spans.
    Link,
    /// Resources.
    Resource,
    /// Spans.
    Span,
}

impl TagScope {
    const ALL: [Self; 5] = [Self::Event, Self::Instrumentation, Self::Link, Self::Resource, Self::Span];

    /// The name in requests and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Instrumentation => "instrumentation",
            Self::Link => "link",
            Self::Resource => "resource",
            Self::Span => "span",
        }
    }

    /// The scope of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

/// The names of intrinsics that tag queries show, sorted.
pub(crate) const INTRINSICS: [&str; 25] = [
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

const STATUSES: [&str; 3] = ["error", "ok", "unset"];
const KINDS: [&str; 6] = ["client", "consumer", "internal", "producer", "server", "unspecified"];

/// What values are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagName {
    /// An attribute.
    Attribute {
        /// Where; everywhere when absent.
        scope: Option<TagScope>,
        /// Its key.
        name: String,
    },
    /// An intrinsic whose values are texts.
    Text(TextIntrinsic),
    /// An intrinsic whose values are known without looking.
    Keywords(&'static [&'static str]),
    /// Something that is valid but has too many values to list, such as ids and durations.
    Nothing,
}

/// Intrinsics with texts as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextIntrinsic {
    /// `name`
    Name,
    /// `statusMessage`
    StatusMessage,
    /// `rootName`
    RootName,
    /// `rootServiceName`
    RootServiceName,
    /// `event:name`
    EventName,
    /// `instrumentation:name`
    InstrumentationName,
    /// `instrumentation:version`
    InstrumentationVersion,
}

impl TagName {
    /// Reads a TraceQL identifier: `.foo`, `span.foo`, `resource."my attr"`, `name`, `span:kind`, … `None` when it is none.
    pub fn parse(identifier: &str) -> Option<Self> {
        let attribute = |scope, name: &str| Some(Self::Attribute { scope, name: unquote(name)? });
        if let Some(name) = identifier.strip_prefix('.') {
            return attribute(None, name);
        }
        if let Some(name) = identifier.strip_prefix("parent.") {
            return unquote(name).map(|_| Self::Nothing);
        }
        if let Some((scope, name)) = identifier.split_once('.')
            && let Some(scope) = TagScope::from_name(scope)
        {
            return attribute(Some(scope), name);
        }
        Some(match identifier {
            "name" | "span:name" => Self::Text(TextIntrinsic::Name),
            "statusMessage" | "span:statusMessage" => Self::Text(TextIntrinsic::StatusMessage),
            "rootName" | "trace:rootName" => Self::Text(TextIntrinsic::RootName),
            "rootServiceName" | "trace:rootService" => Self::Text(TextIntrinsic::RootServiceName),
            "event:name" => Self::Text(TextIntrinsic::EventName),
            "instrumentation:name" => Self::Text(TextIntrinsic::InstrumentationName),
            "instrumentation:version" => Self::Text(TextIntrinsic::InstrumentationVersion),
            "status" | "span:status" => Self::Keywords(&STATUSES),
            "kind" | "span:kind" => Self::Keywords(&KINDS),
            "duration"
            | "span:duration"
            | "traceDuration"
            | "trace:duration"
            | "event:timeSinceStart"
            | "trace:id"
            | "span:id"
            | "span:parentID"
            | "link:traceID"
            | "link:spanID"
            | "span:childCount"
            | "nestedSetLeft"
            | "nestedSetRight"
            | "nestedSetParent" => Self::Nothing,
            _ => return None,
        })
    }

    fn projection(&self) -> Projection {
        match self {
            Self::Attribute { scope, .. } => scope_projection(*scope),
            Self::Text(TextIntrinsic::EventName) => Projection { events: true, ..Projection::INTRINSICS },
            Self::Text(TextIntrinsic::InstrumentationName | TextIntrinsic::InstrumentationVersion) => {
                Projection { scopes: true, ..Projection::INTRINSICS }
            }
            Self::Text(TextIntrinsic::RootServiceName) => Projection { resource_attributes: true, ..Projection::INTRINSICS },
            Self::Text(_) | Self::Keywords(_) | Self::Nothing => Projection::INTRINSICS,
        }
    }
}

/// An attribute name of TraceQL without its quotes: plain and quoted parts may follow each other.
fn unquote(name: &str) -> Option<String> {
    let mut plain = String::with_capacity(name.len());
    let mut quoted = false;
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' if quoted => plain.push(characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other if quoted => plain.push(other),
            other if other.is_whitespace() || "{}()=~!<>&|^,".contains(other) => return None,
            other => plain.push(other),
        }
    }
    (!quoted && !name.is_empty()).then_some(plain)
}

fn scope_projection(scope: Option<TagScope>) -> Projection {
    let wanted = |this| scope.is_none_or(|scope| scope == this);
    Projection {
        resource_attributes: wanted(TagScope::Resource),
        scopes: wanted(TagScope::Instrumentation),
        span_attributes: wanted(TagScope::Span),
        events: wanted(TagScope::Event),
        links: wanted(TagScope::Link),
    }
}

/// A question for the names of attributes.
#[derive(Clone, Debug)]
pub struct NamesRequest {
    /// Where; everywhere when absent.
    pub scope: Option<TagScope>,
    /// Only spans that satisfy it, with their resources and scopes.
    pub filter: Option<Filter>,
    /// Which blocks are read; those of the last hour when absent. Recent data is read in any case.
    pub range: Option<TimeRange>,
    /// Most names of a scope; 0 means any number.
    pub max_per_scope: usize,
    /// Stop after so many known names in a row; 0 means never.
    pub max_stale: usize,
}

/// A question for the values of a tag.
#[derive(Clone, Debug)]
pub struct ValuesRequest {
    /// The tag.
    pub tag: TagName,
    /// Only spans that satisfy it, with their resources and scopes.
    pub filter: Option<Filter>,
    /// Which blocks are read; those of the last hour when absent. Recent data is read in any case.
    pub range: Option<TimeRange>,
    /// Most values; 0 means any number.
    pub max_values: usize,
    /// Stop after so many known values in a row; 0 means never.
    pub max_stale: usize,
}

/// What a tag query found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Names by scope, or values by type (`string`, `int`, `float`, `bool`, `keyword`). No group is empty.
    pub groups: BTreeMap<&'static str, BTreeSet<String>>,
    /// Bytes read from blocks.
    pub inspected_bytes: u64,
}

impl Engine {
    /// Names of attributes, by scope. Scopes without names are left out.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn tag_names(&self, tenants: &[Tenant], request: NamesRequest) -> Result<Tags, QueryError> {
        let bounds = Bounds {
            max_bytes: self.max_tag_bytes(tenants),
            max_per_group: request.max_per_scope,
            max_entries: 0,
            max_stale: request.max_stale,
            count_group: false,
        };
        let projection = with_filter(scope_projection(request.scope), request.filter.as_ref());
        let wanted = Arc::new(Wanted::Names(request.scope));
        self.gather(tenants, Gather { wanted, filter: request.filter, range: request.range, bounds, projection }).await
    }

    /// Values of a tag, by type.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn tag_values(&self, tenants: &[Tenant], request: ValuesRequest) -> Result<Tags, QueryError> {
        let bounds = Bounds {
            max_bytes: self.max_tag_bytes(tenants),
            max_per_group: 0,
            max_entries: request.max_values,
            max_stale: request.max_stale,
            count_group: true,
        };
        match &request.tag {
            TagName::Nothing => return Ok(Tags::default()),
            TagName::Keywords(keywords) => {
                let mut found = Gathered::new(bounds);
                keywords.iter().for_each(|keyword| found.add("keyword", keyword));
                return Ok(Tags { groups: found.groups, inspected_bytes: 0 });
            }
            TagName::Attribute { .. } | TagName::Text(_) => {}
        }
        let projection = with_filter(request.tag.projection(), request.filter.as_ref());
        let wanted = Arc::new(Wanted::Values(request.tag));
        self.gather(tenants, Gather { wanted, filter: request.filter, range: request.range, bounds, projection }).await
    }

    fn max_tag_bytes(&self, tenants: &[Tenant]) -> usize {
        tenants.iter().map(|tenant| self.limits(tenant).max_bytes_per_tag_values_query).filter(|limit| *limit > 0).min().unwrap_or(0)
    }

    async fn gather(&self, tenants: &[Tenant], request: Gather) -> Result<Tags, QueryError> {
        let query = self.query();
        let filter = request.filter.map(Arc::new);
        let work = || async {
            let gatherer = || Gatherer {
                wanted: Arc::clone(&request.wanted),
                filter: filter.clone(),
                // Repetitions are counted where everything comes together.
                found: Gathered::new(Bounds { max_stale: 0, ..request.bounds }),
            };
            let mut all = Gathered::new(request.bounds);
            let mut inspected_bytes = 0;
            for tenant in tenants {
                all.merge(self.scan_recent(tenant, gatherer(), &query).await?.found);
            }
            let mut blocks = self.blocks(tenants, Some(request.range.unwrap_or_else(|| self.lookback())));
            let most = tenants.iter().map(|tenant| self.limits(tenant).max_blocks_per_tag_values_query).filter(|most| *most > 0).min();
            blocks.truncate(most.unwrap_or(usize::MAX));
            if !all.full {
                let take = |meta: &Meta, gatherer: Gatherer| {
                    inspected_bytes += meta.size;
                    all.merge(gatherer.found);
                    if all.full { Flow::Stop } else { Flow::Continue }
                };
                self.scan_blocks(blocks, request.projection, &query, |_| gatherer(), take).await?;
            }
            Ok(Tags { groups: all.groups, inspected_bytes })
        };
        self.on_one_list(self.settings.search_timeout, work).await
    }
}

/// A tag query that is ready to run.
#[derive(Debug)]
struct Gather {
    wanted: Arc<Wanted>,
    filter: Option<Filter>,
    range: Option<TimeRange>,
    bounds: Bounds,
    projection: Projection,
}

/// What is gathered.
#[derive(Debug)]
enum Wanted {
    Names(Option<TagScope>),
    Values(TagName),
}

/// Bounds of an answer; 0 means none.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    max_bytes: usize,
    max_per_group: usize,
    max_entries: usize,
    max_stale: usize,
    /// Whether the name of the group counts as bytes of an entry.
    count_group: bool,
}

/// A bounded set of texts in groups.
#[derive(Debug)]
struct Gathered {
    bounds: Bounds,
    groups: BTreeMap<&'static str, BTreeSet<String>>,
    entries: usize,
    bytes: usize,
    stale: usize,
    full: bool,
}

impl Gathered {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, groups: BTreeMap::new(), entries: 0, bytes: 0, stale: 0, full: false }
    }

    fn add(&mut self, group: &'static str, text: &str) {
        if self.full || text.is_empty() {
            return;
        }
        let reached = |limit: usize, count: usize| limit > 0 && count >= limit;
        if self.groups.get(group).is_some_and(|known| known.contains(text)) {
            self.stale += 1;
            self.full = reached(self.bounds.max_stale, self.stale);
            return;
        }
        let bytes = text.len() + if self.bounds.count_group { group.len() } else { 0 };
        if self.bounds.max_bytes > 0 && self.bytes + bytes > self.bounds.max_bytes {
            self.full = true;
            return;
        }
        let entries = self.groups.entry(group).or_default();
        entries.insert(text.to_owned());
        self.stale = 0;
        self.bytes += bytes;
        self.entries += 1;
        self.full = reached(self.bounds.max_per_group, entries.len()) || reached(self.bounds.max_entries, self.entries);
    }

    fn merge(&mut self, other: Self) {
        for (group, texts) in other.groups {
            texts.iter().for_each(|text| self.add(group, text));
        }
    }
}

/// Gathers from traces.
#[derive(Debug)]
struct Gatherer {
    wanted: Arc<Wanted>,
    filter: Option<Arc<Filter>>,
    found: Gathered,
}

impl Visitor for Gatherer {
    fn visit(&mut self, mut trace: Trace) -> Result<(), QueryError> {
        if self.found.full {
            return Ok(());
        }
        let (root_name, root_service) = match &*self.wanted {
            Wanted::Values(TagName::Text(TextIntrinsic::RootName | TextIntrinsic::RootServiceName)) => root(&trace),
            _ => (String::new(), String::new()),
        };
        if let Some(filter) = &self.filter {
            keep_matching(&mut trace, filter);
        }
        if trace.resource_spans.is_empty() {
            return Ok(());
        }
        match &*self.wanted {
            Wanted::Values(TagName::Text(TextIntrinsic::RootName)) => self.found.add("string", &root_name),
            Wanted::Values(TagName::Text(TextIntrinsic::RootServiceName)) => self.found.add("string", &root_service),
            wanted => look_at(&trace, wanted, &mut self.found),
        }
        Ok(())
    }
}

fn look_at(trace: &Trace, wanted: &Wanted, found: &mut Gathered) {
    for resource in &trace.resource_spans {
        if let Some(Resource { attributes, .. }) = &resource.resource {
            look_at_attributes(TagScope::Resource, attributes, wanted, found);
        }
        for scope in &resource.scope_spans {
            if let Some(scope) = &scope.scope {
                look_at_scope(scope, wanted, found);
            }
            for span in &scope.spans {
                look_at_span(span, wanted, found);
            }
        }
    }
}

fn look_at_scope(scope: &InstrumentationScope, wanted: &Wanted, found: &mut Gathered) {
    match wanted {
        Wanted::Values(TagName::Text(TextIntrinsic::InstrumentationName)) => found.add("string", &scope.name),
        Wanted::Values(TagName::Text(TextIntrinsic::InstrumentationVersion)) => found.add("string", &scope.version),
        _ => look_at_attributes(TagScope::Instrumentation, &scope.attributes, wanted, found),
    }
}

fn look_at_span(span: &Span, wanted: &Wanted, found: &mut Gathered) {
    match wanted {
        Wanted::Values(TagName::Text(TextIntrinsic::Name)) => found.add("string", &span.name),
        Wanted::Values(TagName::Text(TextIntrinsic::StatusMessage)) => {
            found.add("string", span.status.as_ref().map_or("", |status| &status.message));
        }
        Wanted::Values(TagName::Text(TextIntrinsic::EventName)) => span.events.iter().for_each(|event| found.add("string", &event.name)),
        _ => {
            look_at_attributes(TagScope::Span, &span.attributes, wanted, found);
            for event in &span.events {
                look_at_attributes(TagScope::Event, &event.attributes, wanted, found);
            }
            for link in &span.links {
                look_at_attributes(TagScope::Link, &link.attributes, wanted, found);
            }
        }
    }
}

fn look_at_attributes(scope: TagScope, attributes: &[KeyValue], wanted: &Wanted, found: &mut Gathered) {
    match wanted {
        Wanted::Names(asked) if asked.is_none_or(|asked| asked == scope) => {
            attributes.iter().for_each(|attribute| found.add(scope.as_str(), &attribute.key));
        }
        Wanted::Values(TagName::Attribute { scope: asked, name }) if asked.is_none_or(|asked| asked == scope) => {
            for attribute in attributes.iter().filter(|attribute| attribute.key == *name) {
                if let Some(value) = &attribute.value {
                    look_at_value(value, found);
                }
            }
        }
        _ => {}
    }
}

/// Elements of arrays are values like others; maps and bytes are not shown, as TraceQL cannot compare them.
fn look_at_value(value: &AnyValue, found: &mut Gathered) {
    match &value.value {
        Some(Value::StringValue(text)) => found.add("string", text),
        Some(Value::BoolValue(value)) => found.add("bool", if *value { "true" } else { "false" }),
        Some(Value::IntValue(value)) => found.add("int", &value.to_string()),
        Some(Value::DoubleValue(value)) => found.add("float", &value.to_string()),
        Some(Value::ArrayValue(array)) => {
            let scalars = array.values.iter().filter(|value| !matches!(value.value, Some(Value::ArrayValue(_))));
            scalars.for_each(|value| look_at_value(value, found));
        }
        Some(Value::KvlistValue(_) | Value::BytesValue(_) | Value::StringValueStrindex(_)) | None => {}
    }
}

/// Name and service of the root span.
fn root(trace: &Trace) -> (String, String) {
    let mut root = (String::new(), String::new());
    for resource in &trace.resource_spans {
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            if span.parent_span_id.iter().all(|byte| *byte == 0) {
                let attributes = resource.resource.iter().flat_map(|resource| &resource.attributes);
                let service = attributes.filter(|attribute| attribute.key == "service.name").find_map(|attribute| {
                    match attribute.value.as_ref()?.value.as_ref()? {
                        Value::StringValue(service) => Some(service.clone()),
                        _ => None,
                    }
                });
                root = (span.name.clone(), service.unwrap_or_default());
            }
        }
    }
    root
}

/// Leaves only the spans that satisfy the filter, with their resources and scopes.
fn keep_matching(trace: &mut Trace, filter: &Filter) {
    let matching = filter.matching_spans(&TraceView::new(trace));
    let mut matching = matching.into_iter().peekable();
    let mut position = 0;
    for resource in &mut trace.resource_spans {
        for scope in &mut resource.scope_spans {
            scope.spans.retain(|_| {
                let keep = matching.next_if_eq(&position).is_some();
                position += 1;
                keep
            });
        }
        resource.scope_spans.retain(|scope| !scope.spans.is_empty());
    }
    trace.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
}

/// What must be decoded for the answer and for the filter.
fn with_filter(wanted: Projection, filter: Option<&Filter>) -> Projection {
    let Some(other) = filter.map(Filter::projection) else {
        return wanted;
    };
    Projection {
        resource_attributes: wanted.resource_attributes || other.resource_attributes,
        scopes: wanted.scopes || other.scopes,
        span_attributes: wanted.span_attributes || other.span_attributes,
        events: wanted.events || other.events,
        links: wanted.links || other.links,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNBOUNDED: Bounds = Bounds { max_bytes: 0, max_per_group: 0, max_entries: 0, max_stale: 0, count_group: false };

    fn gathered(bounds: Bounds) -> Vec<(&'static str, String)> {
        let mut found = Gathered::new(bounds);
        for (group, text) in [("a", "one"), ("a", "two"), ("b", "one"), ("a", "one"), ("a", "one"), ("b", "three"), ("b", "")] {
            found.add(group, text);
        }
        found.groups.into_iter().flat_map(|(group, texts)| texts.into_iter().map(move |text| (group, text))).collect()
    }

    #[test]
    fn answers_are_bounded() {
        let entry = |group, text: &str| (group, text.to_owned());
        let everything = [entry("a", "one"), entry("a", "two"), entry("b", "one"), entry("b", "three")];
        assert_eq!(gathered(UNBOUNDED), everything);
        assert_eq!(gathered(Bounds { max_entries: 2, ..UNBOUNDED }), everything[..2]);
        assert_eq!(gathered(Bounds { max_per_group: 1, ..UNBOUNDED }), everything[..1]);
        assert_eq!(gathered(Bounds { max_stale: 2, ..UNBOUNDED }), everything[..3]);
        assert_eq!(gathered(Bounds { max_bytes: 9, ..UNBOUNDED }), everything[..3]);
        assert_eq!(gathered(Bounds { max_bytes: 9, count_group: true, ..UNBOUNDED }), everything[..2]);
    }

    #[test]
    fn identifiers_are_read() {
        let attribute = |scope, name: &str| Some(TagName::Attribute { scope, name: name.to_owned() });
        for (text, expected) in [
            (".service.name", attribute(None, "service.name")),
            ("span.http.method", attribute(Some(TagScope::Span), "http.method")),
            ("resource.\"a b\".c", attribute(Some(TagScope::Resource), "a b.c")),
            ("event.a-1", attribute(Some(TagScope::Event), "a-1")),
            ("span.\"x\\\"y\"", attribute(Some(TagScope::Span), "x\"y")),
            ("parent.foo", Some(TagName::Nothing)),
            ("name", Some(TagName::Text(TextIntrinsic::Name))),
            ("span:kind", Some(TagName::Keywords(&KINDS))),
            ("trace:id", Some(TagName::Nothing)),
            ("service.name", None),
            ("foo", None),
            ("", None),
            (".", None),
            (".a b", None),
            (".\"a", None),
            (".a}", None),
        ] {
            assert_eq!(TagName::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn every_listed_intrinsic_is_an_identifier() {
        assert!(INTRINSICS.is_sorted());
        for name in INTRINSICS {
            assert!(TagName::parse(name).is_some(), "{name}");
        }
    }
}
