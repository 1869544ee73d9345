//! Names and values of attributes, from one place: out of columns and their dictionaries, with no more read than the scope and the filter ask
//! for. A text is taken once per batch, however many spans have it.

use std::collections::HashSet;

use storage::id::Tenant;

use super::{BatchVisitor, Units, Work};
use crate::{
    columns::{self, Batch, NIL, Texts, Vector},
    engine::{QueryError, TagName, TagScope, TextIntrinsic, gathered::Gathered},
    job::{Place, Recency, TagsAnswer, TagsJob, Wanted},
    traceql::{Field, Filter, Intrinsic, Scope, Value},
};

impl Units {
    pub(super) async fn tags(&self, tenant: &Tenant, job: TagsJob, work: &Work) -> Result<TagsAnswer, QueryError> {
        let gatherer = Gatherer { wanted: job.wanted, filter: job.filter, found: Gathered::new(job.bounds) };
        let (found, inspected_bytes, recent) = match job.place {
            Place::Recent => {
                let (gatherer, recent) = self.recent_batches(tenant, gatherer, work).await?;
                (gatherer.found, 0, recent)
            }
            Place::RowGroups(part) => {
                let wanted = gatherer.columns();
                (self.batches_of_block(&part, wanted, gatherer, work).await?.found, part.bytes(), Recency::default())
            }
        };
        Ok(TagsAnswer { full: found.is_full(), found: found.since(0), inspected_bytes, recent })
    }
}

/// Gathers from batches.
#[derive(Debug)]
struct Gatherer {
    wanted: Wanted,
    filter: Option<Filter>,
    found: Gathered,
}

/// The order in which places are looked at.
const SCOPES: [(TagScope, Scope); 5] = [
    (TagScope::Resource, Scope::Resource),
    (TagScope::Instrumentation, Scope::Instrumentation),
    (TagScope::Span, Scope::Span),
    (TagScope::Event, Scope::Event),
    (TagScope::Link, Scope::Link),
];

fn scopes(asked: Option<TagScope>) -> impl Iterator<Item = (TagScope, Scope)> {
    SCOPES.into_iter().filter(move |(scope, _)| asked.is_none_or(|asked| asked == *scope))
}

fn attribute(scope: Scope, name: &str) -> Field {
    Field::Attribute { parent: false, scope, name: name.to_owned() }
}

fn intrinsic(text: TextIntrinsic) -> Field {
    Field::Intrinsic(match text {
        TextIntrinsic::Name => Intrinsic::Name,
        TextIntrinsic::StatusMessage => Intrinsic::StatusMessage,
        TextIntrinsic::RootName => Intrinsic::RootName,
        TextIntrinsic::RootServiceName => Intrinsic::RootServiceName,
        TextIntrinsic::EventName => Intrinsic::EventName,
        TextIntrinsic::InstrumentationName => Intrinsic::InstrumentationName,
        TextIntrinsic::InstrumentationVersion => Intrinsic::InstrumentationVersion,
    })
}

impl Gatherer {
    /// What is read of blocks.
    fn columns(&self) -> columns::Wanted {
        let mut wanted = columns::Wanted::fields(self.fields());
        if let Wanted::Names(asked) = &self.wanted {
            for (_, scope) in scopes(*asked) {
                wanted = if self.filter.is_some() { wanted.and_all_of(scope) } else { wanted.and_names_of(scope) };
            }
        }
        match &self.filter {
            Some(filter) => wanted.and_filter(filter),
            None => wanted,
        }
    }

    /// The fields whose values are asked for.
    fn fields(&self) -> Vec<Field> {
        match &self.wanted {
            Wanted::Values(TagName::Attribute { scope, name }) => scopes(*scope).map(|(_, scope)| attribute(scope, name)).collect(),
            Wanted::Values(TagName::Text(text)) => vec![intrinsic(*text)],
            Wanted::Names(_) | Wanted::Values(TagName::Keywords(_) | TagName::Nothing) => Vec::new(),
        }
    }

    /// Names that some matching span has.
    fn names(&mut self, batch: &Batch, asked: Option<TagScope>, matching: Option<&[bool]>) -> Result<(), QueryError> {
        for (tag_scope, scope) in scopes(asked) {
            for name in batch.attribute_names(scope)? {
                if self.found.is_full() {
                    return Ok(());
                }
                let occurs = match matching {
                    None => true,
                    Some(matching) => {
                        let vector = batch.vector(&attribute(scope, &name))?;
                        matching.iter().enumerate().any(|(span, matching)| *matching && !vector.is_nil(span))
                    }
                };
                if occurs {
                    self.found.add(tag_scope.as_str(), &name);
                }
            }
        }
        Ok(())
    }
}

impl BatchVisitor for Gatherer {
    fn visit(&mut self, batch: &Batch) -> Result<(), QueryError> {
        let matching = self.filter.as_ref().map(|filter| filter.matching(batch)).transpose()?;
        if matching.as_ref().is_some_and(|matching| !matching.contains(&true)) {
            return Ok(());
        }
        if let Wanted::Names(asked) = self.wanted {
            return self.names(batch, asked, matching.as_deref());
        }
        for field in self.fields() {
            if field.is_of_event() || field.is_of_link() {
                let elements = batch.elements(&field)?;
                let of_spans = matching.as_ref().map(|matching| {
                    let counts = elements.offsets.windows(2).map(|range| (range[1] - range[0]) as usize);
                    matching.iter().zip(counts).flat_map(|(matching, count)| std::iter::repeat_n(*matching, count)).collect::<Vec<bool>>()
                });
                gather(&elements.values, of_spans.as_deref(), &mut self.found);
            } else {
                gather(&*batch.vector(&field)?, matching.as_deref(), &mut self.found);
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.found.is_full()
    }
}

/// Takes the values of those entries that match.
fn gather(vector: &Vector, matching: Option<&[bool]>, found: &mut Gathered) {
    let matches = |entry: usize| matching.is_none_or(|matching| matching[entry]);
    match vector {
        Vector::Text(Texts { codes, dictionary }) => {
            let mut known = vec![false; dictionary.len()];
            for (entry, &code) in codes.iter().enumerate() {
                if code != NIL && !known[code as usize] && matches(entry) {
                    known[code as usize] = true;
                    found.add("string", dictionary.text(code));
                }
            }
        }
        Vector::Int(numbers) => {
            let mut known = HashSet::new();
            for entry in (0..numbers.values.len()).filter(|&entry| matches(entry)) {
                if let Some(number) = numbers.get(entry).filter(|&number| known.insert(number)) {
                    found.add("int", &number.to_string());
                }
            }
        }
        other => (0..other.len()).filter(|&entry| matches(entry)).for_each(|entry| gather_value(&other.value(entry), found)),
    }
}

/// Elements of arrays are values like others.
fn gather_value(value: &Value, found: &mut Gathered) {
    match value {
        Value::String(text) => found.add("string", text),
        Value::Bool(value) => found.add("bool", if *value { "true" } else { "false" }),
        Value::Int(number) => found.add("int", &number.to_string()),
        Value::Float(number) => found.add("float", &number.to_string()),
        Value::Array(values) => values.iter().for_each(|value| gather_value(value, found)),
        Value::Nil | Value::Duration(_) | Value::Status(_) | Value::Kind(_) => {}
    }
}
