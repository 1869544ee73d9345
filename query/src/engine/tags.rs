//! Names and values of attributes, for editors and variables.
//!
//! All spans of the range are looked at, recent ones and those of blocks, newest blocks first, with no more decoded than the scope asks for.
//! Answers are bounded: by bytes, by number of entries, by number of known entries in a row. Reaching a bound is no error; what was found is
//! the answer. Each block gathers into its own bounded set, and the sets are merged in the order of the blocks, so the answer doesn't depend
//! on which block was read first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use storage::id::Tenant;

use super::{Engine, QueryError, Streaming, TimeRange, gathered::Gathered, refuse_incomplete, stream::Progress, wrong_kind};
use crate::{
    job::{Answer, Bounds, Job, Place, TagsAnswer, TagsJob, Wanted, sorted},
    metrics::Op,
    traceql::Filter,
};

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

impl TextIntrinsic {
    const ALL: [Self; 7] = [
        Self::Name,
        Self::StatusMessage,
        Self::RootName,
        Self::RootServiceName,
        Self::EventName,
        Self::InstrumentationName,
        Self::InstrumentationVersion,
    ];

    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::StatusMessage => "statusMessage",
            Self::RootName => "rootName",
            Self::RootServiceName => "rootServiceName",
            Self::EventName => "event:name",
            Self::InstrumentationName => "instrumentation:name",
            Self::InstrumentationVersion => "instrumentation:version",
        }
    }

    /// The intrinsic of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|intrinsic| intrinsic.as_str() == name)
    }
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
    /// Whether this is all of it, rather than what was found since the last message of a stream.
    pub is_whole: bool,
}

impl Engine {
    /// Names of attributes, by scope. Scopes without names are left out.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn tag_names(&self, tenants: &[Tenant], request: NamesRequest) -> Result<Tags, QueryError> {
        self.tags(tenants, &self.names_query(tenants, request), None).await
    }

    /// Values of a tag, by type.
    ///
    /// # Errors
    /// Some part of the data cannot be read in time.
    pub async fn tag_values(&self, tenants: &[Tenant], request: ValuesRequest) -> Result<Tags, QueryError> {
        self.tags(tenants, &self.values_query(tenants, request), None).await
    }

    /// As [`Engine::tag_names`], with what was found so far every `every`; the last message has everything.
    pub fn tag_names_stream(self: &Arc<Self>, tenants: Vec<Tenant>, request: NamesRequest, every: Duration) -> Streaming<Tags> {
        let query = self.names_query(&tenants, request);
        self.tags_stream(tenants, query, every)
    }

    /// As [`Engine::tag_values`], with what was found so far every `every`; the last message has everything.
    pub fn tag_values_stream(self: &Arc<Self>, tenants: Vec<Tenant>, request: ValuesRequest, every: Duration) -> Streaming<Tags> {
        let query = self.values_query(&tenants, request);
        self.tags_stream(tenants, query, every)
    }

    fn tags_stream(self: &Arc<Self>, tenants: Vec<Tenant>, query: TagsQuery, every: Duration) -> Streaming<Tags> {
        let engine = Arc::clone(self);
        Streaming::spawn(every, move |progress| async move { engine.tags(&tenants, &query, Some(&progress)).await })
    }

    fn names_query(&self, tenants: &[Tenant], request: NamesRequest) -> TagsQuery {
        let bounds = Bounds {
            max_bytes: self.max_tag_bytes(tenants),
            max_per_group: request.max_per_scope,
            max_entries: 0,
            max_stale: request.max_stale,
            count_group: false,
        };
        TagsQuery { wanted: Wanted::Names(request.scope), filter: request.filter, range: request.range, bounds }
    }

    fn values_query(&self, tenants: &[Tenant], request: ValuesRequest) -> TagsQuery {
        let bounds = Bounds {
            max_bytes: self.max_tag_bytes(tenants),
            max_per_group: 0,
            max_entries: request.max_values,
            max_stale: request.max_stale,
            count_group: true,
        };
        TagsQuery { wanted: Wanted::Values(request.tag), filter: request.filter, range: request.range, bounds }
    }

    fn max_tag_bytes(&self, tenants: &[Tenant]) -> usize {
        tenants.iter().map(|tenant| self.limits(tenant).max_bytes_per_tag_values_query).filter(|limit| *limit > 0).min().unwrap_or(0)
    }

    async fn tags(&self, tenants: &[Tenant], query: &TagsQuery, progress: Option<&Progress<Tags>>) -> Result<Tags, QueryError> {
        match &query.wanted {
            Wanted::Values(TagName::Nothing) => return Ok(Tags { is_whole: true, ..Tags::default() }),
            Wanted::Values(TagName::Keywords(keywords)) => {
                let mut found = Gathered::new(query.bounds);
                keywords.iter().for_each(|keyword| found.add("keyword", keyword));
                return Ok(Tags { groups: sorted(found.since(0)), inspected_bytes: 0, is_whole: true });
            }
            Wanted::Names(_) | Wanted::Values(TagName::Attribute { .. } | TagName::Text(_)) => {}
        }
        self.on_one_list(|| self.gather(tenants, query, progress)).await
    }

    async fn gather(&self, tenants: &[Tenant], query: &TagsQuery, progress: Option<&Progress<Tags>>) -> Result<Tags, QueryError> {
        let running = self.begin(self.settings.search_timeout);
        let mut snapshot = self.snapshot(tenants, Some(query.range.unwrap_or_else(|| self.lookback())));
        let job = |place: Place| {
            // Known texts in a row are counted where everything comes together.
            let bounds = Bounds { max_stale: 0, ..query.bounds };
            Job::Tags(TagsJob { wanted: query.wanted.clone(), filter: query.filter.clone(), bounds, place })
        };
        let mut gathering = Gathering { all: Gathered::new(query.bounds), inspected_bytes: 0, shown: 0, progress };
        for tenant in tenants {
            let Answer::Tags(answer) = running.run(tenant, job(Place::Recent)).await? else { return Err(wrong_kind()) };
            refuse_incomplete(answer.recent.incomplete)?;
            snapshot.add(&answer.recent.published);
            gathering.take(&answer);
        }
        let most = tenants.iter().map(|tenant| self.limits(tenant).max_blocks_per_tag_values_query).filter(|most| *most > 0).min();
        snapshot.truncate(most.unwrap_or(usize::MAX));
        if !gathering.all.is_full() {
            let mut charge = self.charge();
            let parts = snapshot.parts(self.settings.target_bytes_per_job);
            self.metrics.jobs(Op::Metadata, parts.len() + tenants.len());
            let mut parts = parts.into_iter();
            let mut running = running.in_order(self.settings.concurrent_jobs);
            loop {
                while running.has_room()
                    && let Some(part) = parts.next()
                {
                    charge.add(part.bytes())?;
                    running.begin(part.meta.tenant_id.clone(), job(Place::RowGroups(part)));
                }
                let Some(answer) = running.next().await else { break };
                let Answer::Tags(answer) = answer? else { return Err(wrong_kind()) };
                gathering.take(&answer);
                if gathering.all.is_full() {
                    break;
                }
            }
        }
        Ok(Tags { groups: sorted(gathering.all.since(0)), inspected_bytes: gathering.inspected_bytes, is_whole: true })
    }
}

/// A tag query that is ready to run.
#[derive(Debug)]
struct TagsQuery {
    wanted: Wanted,
    filter: Option<Filter>,
    range: Option<TimeRange>,
    bounds: Bounds,
}

/// A tag query that is running.
struct Gathering<'p> {
    all: Gathered,
    inspected_bytes: u64,
    /// Texts that were sent already.
    shown: usize,
    progress: Option<&'p Progress<Tags>>,
}

impl Gathering<'_> {
    fn take(&mut self, answer: &TagsAnswer) {
        self.inspected_bytes += answer.inspected_bytes;
        self.all.merge(&answer.found, answer.full);
        if let Some(progress) = self.progress
            && self.all.len() > self.shown
            && progress.is_due()
        {
            let groups = sorted(self.all.since(self.shown));
            if progress.send(Tags { groups, inspected_bytes: self.inspected_bytes, is_whole: false }) {
                self.shown = self.all.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
