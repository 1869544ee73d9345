//! What a job has counted, and how the counts of several jobs become one.
//!
//! ```text
//!  job ─► Partial ─┐
//!  job ─► Partial ─┼─ merge ─► Partial ─ finish ─► series
//!  job ─► Partial ─┘
//! ```
//!
//! `merge` is associative and commutative, and the result does not depend on how spans are split into jobs. That holds for exemplars, too, as
//! long as the spans of a trace stay together.
//!
//! **Too many groups.** A partial result has a number of groups that it may hold. When there are more, those that come last in the order of the
//! answer are dropped, and the last one that stayed becomes the *horizon*: beyond it nothing is kept, up to it everything is exact. The
//! horizon of a merged result is the nearest one. So an answer that was cut short is cut at one place, whatever the jobs were, and what it
//! shows is right. Where that is no answer, because `topk` would choose among too few, the query is refused.

use std::collections::HashMap;

use super::{
    cells::Cells,
    compare::Comparison,
    error::MetricsError,
    exemplars::Exemplars,
    labels::{Group, LabelValue, SortKey, group_labels},
    request::MetricsRequest,
};

/// What a job has counted.
#[derive(Clone, Debug)]
pub struct Partial {
    pub(super) groups: Groups,
    pub(super) comparison: Comparison,
    pub(super) exemplars: Exemplars,
}

/// Groups and their cells.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    index: HashMap<Group, u32>,
    pub(super) cells: Cells,
    pub(super) intervals: usize,
    /// Groups that come after it are not kept.
    pub(super) horizon: Option<SortKey>,
    /// Bytes of the texts of groups.
    text_bytes: usize,
}

/// Bytes that the map and the sort keys need per group, about.
const GROUP_OVERHEAD: usize = 96;

impl Partial {
    /// Nothing counted yet.
    pub fn new(request: &MetricsRequest) -> Self {
        let intervals = request.window().intervals();
        Self {
            groups: Groups { index: HashMap::new(), cells: Cells::new(request.shape()), intervals, horizon: None, text_bytes: 0 },
            comparison: Comparison::default(),
            exemplars: Exemplars::default(),
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.groups.index.is_empty() && self.groups.horizon.is_none() && self.comparison.is_empty()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.groups.bytes() + self.comparison.bytes()
    }

    /// Adds what another job of the same query has counted.
    ///
    /// # Errors
    /// The series do not fit into memory.
    pub fn merge(&mut self, request: &MetricsRequest, other: &Self) -> Result<(), MetricsError> {
        if let Some(horizon) = &other.groups.horizon {
            self.groups.cut_at(request, horizon.clone());
        }
        let mut theirs: Vec<(&Group, &u32)> = other.groups.index.iter().collect();
        // Where the horizon comes to lie depends on the order; which groups are right does not.
        if request.max_series() > 0 || self.groups.bytes() + other.groups.bytes() > request.limits().max_bytes {
            theirs.sort_unstable();
        }
        for (group, from) in theirs {
            if let Some(to) = self.groups.find(request, group)? {
                self.groups.cells.merge(to as usize, &other.groups.cells, *from as usize, self.groups.intervals);
            }
        }
        self.comparison.merge(request, &other.comparison)?;
        self.exemplars.merge(request, &other.exemplars);
        Ok(())
    }
}

impl Groups {
    /// Number of groups.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The groups and their numbers, in any order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Group, usize)> {
        self.index.iter().map(|(group, number)| (group, *number as usize))
    }

    /// The number of a group, which begins if need be; `None` when it is beyond the horizon. A group that begins may move the horizon,
    /// and with it the numbers of all.
    ///
    /// # Errors
    /// The groups do not fit into memory.
    pub(super) fn find(&mut self, request: &MetricsRequest, group: &[LabelValue]) -> Result<Option<u32>, MetricsError> {
        if let Some(number) = self.index.get(group) {
            return Ok(Some(*number));
        }
        if self.is_beyond(request, group) {
            return Ok(None);
        }
        self.make_room(request)?;
        // Room may have been made by moving the horizon.
        if self.is_beyond(request, group) {
            return Ok(None);
        }
        let number = self.index.len() as u32;
        self.index.insert(group.into(), number);
        self.text_bytes += group.iter().map(LabelValue::heap_bytes).sum::<usize>();
        self.cells.push(self.intervals);
        Ok(Some(number))
    }

    fn is_beyond(&self, request: &MetricsRequest, group: &[LabelValue]) -> bool {
        self.horizon.as_ref().is_some_and(|horizon| sort_key(request, group) > *horizon)
    }

    /// Bytes of memory, about.
    fn bytes(&self) -> usize {
        self.index.len() * self.bytes_per_group() + 2 * self.text_bytes
    }

    fn bytes_per_group(&self) -> usize {
        GROUP_OVERHEAD + self.cells.bytes_per_group(self.intervals)
    }

    /// Makes room for one more group.
    fn make_room(&mut self, request: &MetricsRequest) -> Result<(), MetricsError> {
        let max_bytes = request.limits().max_bytes;
        let wanted = request.max_series();
        let full = self.bytes() + self.bytes_per_group() > max_bytes;
        if request.may_be_cut() {
            // Groups have at least one series each. Twice as many, so that not every group costs a sort.
            if wanted > 0 && self.index.len() >= 2 * wanted {
                self.keep_first(request, wanted);
            } else if full && self.index.len() > 1 {
                self.keep_first(request, self.index.len() / 2);
            } else if full {
                return Err(MetricsError::TooLarge { max_bytes });
            }
        } else if full {
            return Err(MetricsError::TooLarge { max_bytes });
        }
        Ok(())
    }

    fn keep_first(&mut self, request: &MetricsRequest, number: usize) {
        let mut keys: Vec<SortKey> = self.index.keys().map(|group| sort_key(request, group)).collect();
        let (_, horizon, _) = keys.select_nth_unstable(number.saturating_sub(1));
        let horizon = horizon.clone();
        self.cut_at(request, horizon);
    }

    /// Drops what comes after a horizon, from now on.
    pub(super) fn cut_at(&mut self, request: &MetricsRequest, horizon: SortKey) {
        if self.horizon.as_ref().is_some_and(|nearer| *nearer <= horizon) {
            return;
        }
        let mut kept = Vec::new();
        let mut text_bytes = 0;
        self.index.retain(|group, number| {
            let stays = sort_key(request, group) <= horizon;
            if stays {
                text_bytes += group.iter().map(LabelValue::heap_bytes).sum::<usize>();
                kept.push(*number);
                *number = kept.len() as u32 - 1;
            }
            stays
        });
        self.cells.keep(&kept, self.intervals);
        self.text_bytes = text_bytes;
        self.horizon = Some(horizon);
    }

    /// The number of a group that is there.
    pub(super) fn known(&self, group: &[LabelValue]) -> Option<u32> {
        self.index.get(group).copied()
    }
}

fn sort_key(request: &MetricsRequest, group: &[LabelValue]) -> SortKey {
    SortKey::new(&group_labels(request.keys(), group))
}
