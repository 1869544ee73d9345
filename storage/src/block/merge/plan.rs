//! Which rows come next: a merge of sorted lists of trace ids into steps.
//!
//! ```text
//!  part 0   a  c  d  g  h          ids of the rows at hand of each input, oldest input first
//!  part 1   b  d  e  f
//!           ▼
//!  copy 0[0..1], copy 1[0..1], copy 0[1..2], combine (0[2], 1[1]), copy 1[2..4], copy 0[3..5]
//! ```
//!
//! A part is a stretch of rows of one input that lies in memory; of an input there may be several, one after the other. [`Queue`] holds the
//! parts of one input. [`extend`] goes on for as long as every input that has more rows has rows at hand, and the row group has room.

use std::{collections::VecDeque, ops::Range};

use crate::id::TraceId;

/// What the output gets next. Parts are numbered within one row group of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Rows of one part, as they are.
    Copy { part: u32, rows: Range<u32> },
    /// One row out of several, by part and row, in the order of the inputs.
    Combine(Vec<(u32, u32)>),
}

/// What a row is expected to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Compressed bytes.
    pub(super) stored: u64,
    /// Bytes in memory.
    pub(super) raw: u64,
    /// Tempo's estimate (block-format.md §6.1).
    pub(super) estimate: u64,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.stored += other.stored;
        self.raw += other.raw;
        self.estimate += other.estimate;
    }

    /// Whether one of the limits is reached.
    fn reaches(&self, limit: Self) -> bool {
        self.stored >= limit.stored || self.raw >= limit.raw || self.estimate >= limit.estimate
    }

    /// Whether one of the limits would be passed by adding `other`.
    fn passes_with(mut self, other: Self, limit: Self) -> bool {
        self.add(other);
        self.stored > limit.stored || self.raw > limit.raw || self.estimate > limit.estimate
    }
}

/// Rows at hand.
#[derive(Clone, Debug)]
pub(super) struct Part<T> {
    /// Ascending.
    pub(super) ids: Vec<TraceId>,
    /// One per row.
    pub(super) costs: Vec<Cost>,
    /// What the rows are read from.
    pub(super) data: T,
}

/// The parts of one input and how far they are used up.
#[derive(Debug)]
pub(super) struct Queue<T> {
    parts: VecDeque<Part<T>>,
    /// Number that the part has in the row group being planned, once it takes part in it; of the parts at the front.
    numbers: VecDeque<u32>,
    /// Part (in `parts`) and row that come next.
    part: usize,
    row: usize,
    /// No part will follow.
    pub(super) finished: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { parts: VecDeque::new(), numbers: VecDeque::new(), part: 0, row: 0, finished: false }
    }
}

impl<T: Clone> Queue<T> {
    /// Adds rows. There is at least one, and their ids are above those before.
    pub(super) fn push(&mut self, part: Part<T>) {
        debug_assert!(!part.ids.is_empty() && part.ids.len() == part.costs.len(), "a part has rows and their costs");
        self.parts.push_back(part);
    }

    fn head(&self) -> Option<TraceId> {
        self.parts.get(self.part).and_then(|part| part.ids.get(self.row)).copied()
    }

    fn head_cost(&self) -> Cost {
        self.parts.get(self.part).and_then(|part| part.costs.get(self.row)).copied().unwrap_or_default()
    }

    /// Whether rows are missing that may exist.
    pub(super) fn is_starved(&self) -> bool {
        !self.finished && self.head().is_none()
    }

    /// Takes the next row: its part's number in the plan, and its row there.
    fn take(&mut self, plan: &mut Plan<T>) -> (u32, u32) {
        while self.numbers.len() <= self.part {
            let number = plan.parts.len() as u32;
            plan.parts.push(self.parts[self.numbers.len()].data.clone());
            self.numbers.push_back(number);
        }
        let taken = (self.numbers[self.part], self.row as u32);
        self.row += 1;
        if self.row == self.parts[self.part].ids.len() {
            self.part += 1;
            self.row = 0;
        }
        taken
    }

    /// Forgets the parts that are used up and the numbers of the plan.
    fn settle(&mut self) {
        self.parts.drain(..self.part);
        self.part = 0;
        self.numbers.clear();
    }
}

/// One row group of the output.
#[derive(Debug)]
pub(super) struct Plan<T> {
    /// Where the parts' rows are read from, by the parts' numbers.
    pub(super) parts: Vec<T>,
    /// In order of their ids.
    pub(super) steps: Vec<Step>,
    /// Ids of the rows.
    pub(super) ids: Vec<TraceId>,
    cost: Cost,
}

impl<T> Default for Plan<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), steps: Vec::new(), ids: Vec::new(), cost: Cost::default() }
    }
}

/// Why [`extend`] came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// An input has no rows at hand and is not finished.
    Starved,
    /// The row group is full, and the queues have forgotten what they gave.
    Full,
    /// All rows of all inputs are planned.
    Finished,
}

/// Plans rows until one of the reasons to halt. A row group is full when it reaches `limit` or would pass it with the next row; it has at
/// least one row.
pub(super) fn extend<T: Clone>(queues: &mut [Queue<T>], plan: &mut Plan<T>, limit: Cost) -> Halt {
    loop {
        if queues.iter().any(Queue::is_starved) {
            return Halt::Starved;
        }
        let Some(next) = queues.iter().filter_map(Queue::head).min() else {
            queues.iter_mut().for_each(Queue::settle);
            return Halt::Finished;
        };
        let mut cost = Cost::default();
        for queue in queues.iter().filter(|queue| queue.head() == Some(next)) {
            cost.add(queue.head_cost());
        }
        if !plan.ids.is_empty() && (plan.cost.reaches(limit) || plan.cost.passes_with(cost, limit)) {
            queues.iter_mut().for_each(Queue::settle);
            return Halt::Full;
        }
        plan.cost.add(cost);
        plan.ids.push(next);
        let mut rows = Vec::new();
        for queue in queues.iter_mut().filter(|queue| queue.head() == Some(next)) {
            rows.push(queue.take(plan));
        }
        match (rows.as_slice(), plan.steps.last_mut()) {
            (&[(part, row)], Some(Step::Copy { part: last, rows })) if *last == part && rows.end == row => rows.end = row + 1,
            (&[(part, row)], _) => plan.steps.push(Step::Copy { part, rows: row..row + 1 }),
            _ => plan.steps.push(Step::Combine(rows)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> TraceId {
        let mut id = [0; 16];
        id[15] = number;
        TraceId(id)
    }

    /// Parts are named by input and number of the part.
    type Name = (usize, usize);

    /// Plans all row groups, feeding a part when an input is starved.
    fn run(inputs: &[Vec<Vec<u8>>], limit: u64) -> Vec<Plan<Name>> {
        let limit = Cost { stored: limit, raw: u64::MAX, estimate: u64::MAX };
        let mut queues: Vec<Queue<Name>> = inputs.iter().map(|_| Queue::default()).collect();
        let mut fed = vec![0; inputs.len()];
        let mut plans = Vec::new();
        let mut plan = Plan::default();
        loop {
            for (input, queue) in queues.iter_mut().enumerate() {
                if queue.is_starved() {
                    match inputs[input].get(fed[input]) {
                        Some(ids) => queue.push(Part {
                            ids: ids.iter().copied().map(id).collect(),
                            costs: vec![Cost { stored: 1, ..Cost::default() }; ids.len()],
                            data: (input, fed[input]),
                        }),
                        None => queue.finished = true,
                    }
                    fed[input] += 1;
                }
            }
            match extend(&mut queues, &mut plan, limit) {
                Halt::Starved => {}
                Halt::Full => plans.push(std::mem::take(&mut plan)),
                Halt::Finished => {
                    if !plan.ids.is_empty() {
                        plans.push(plan);
                    }
                    return plans;
                }
            }
        }
    }

    #[test]
    fn runs_are_copied_and_meetings_combined() {
        let inputs = [vec![vec![1, 3, 4, 7, 8]], vec![vec![2, 4], vec![5, 6]]];
        let plans = run(&inputs, u64::MAX);
        let copy = |part, rows| Step::Copy { part, rows };
        let steps = vec![copy(0, 0..1), copy(1, 0..1), copy(0, 1..2), Step::Combine(vec![(0, 2), (1, 1)]), copy(2, 0..2), copy(0, 3..5)];
        assert_eq!(plans[0].steps, steps);
        assert_eq!(plans[0].parts, [(0, 0), (1, 0), (1, 1)]);
        assert_eq!(plans.len(), 1);
    }

    #[test]
    fn a_row_larger_than_the_limit_is_a_row_group_alone() {
        let mut queues = [Queue { finished: true, ..Queue::default() }];
        let costs = [1, 9, 1].map(|stored| Cost { stored, ..Cost::default() }).to_vec();
        queues[0].push(Part { ids: vec![id(1), id(2), id(3)], costs, data: () });
        let limit = Cost { stored: 4, raw: 1, estimate: 1 };
        let mut groups = Vec::new();
        loop {
            let mut plan = Plan::default();
            let halt = extend(&mut queues, &mut plan, limit);
            groups.push(plan.ids.len());
            if halt == Halt::Finished {
                break;
            }
        }
        assert_eq!(groups, [1, 1, 1]);
    }

    proptest! {
        /// The naive model: a map from id to every (input, part, row) that has it, cut into groups of `limit` inputs' rows.
        #[test]
        fn plans_are_those_of_a_sorted_map(
            ids in prop::collection::vec(prop::collection::btree_set(any::<u8>(), 0..40), 1..6),
            part in 1usize..9,
            limit in 1u64..50,
        ) {
            let inputs: Vec<Vec<Vec<u8>>> =
                ids.iter().map(|ids| ids.iter().copied().collect::<Vec<_>>().chunks(part).map(<[u8]>::to_vec).collect()).collect();
            let mut expected: BTreeMap<u8, Vec<(usize, usize, u32)>> = BTreeMap::new();
            for (input, parts) in inputs.iter().enumerate() {
                for (number, ids) in parts.iter().enumerate() {
                    for (row, &id) in ids.iter().enumerate() {
                        expected.entry(id).or_default().push((input, number, row as u32));
                    }
                }
            }
            let plans = run(&inputs, limit);
            let mut found = Vec::new();
            for plan in &plans {
                let name = |&(part, row): &(u32, u32)| {
                    let (input, number) = plan.parts[part as usize];
                    (input, number, row)
                };
                let before = found.len();
                let mut cost = 0;
                for step in &plan.steps {
                    match step {
                        Step::Copy { part, rows } => {
                            found.extend(rows.clone().map(|row| vec![name(&(*part, row))]));
                            cost += rows.len();
                        }
                        Step::Combine(rows) => {
                            prop_assert!(rows.len() > 1);
                            found.push(rows.iter().map(name).collect());
                            cost += rows.len();
                        }
                    }
                }
                prop_assert_eq!(plan.ids.len(), found.len() - before);
                prop_assert!(cost as u64 <= limit || plan.ids.len() == 1);
            }
            let ids: Vec<_> = plans.iter().flat_map(|plan| plan.ids.clone()).collect();
            prop_assert_eq!(ids, expected.keys().copied().map(id).collect::<Vec<_>>());
            prop_assert_eq!(found, expected.into_values().collect::<Vec<_>>());
        }
    }
}
