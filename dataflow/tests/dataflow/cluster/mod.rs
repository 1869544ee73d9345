//! One dataflow over several processes.

mod killed;
pub(crate) mod processes;

use std::{collections::BTreeMap, time::Duration};

use dataflow::{
    Settings,
    cluster::Role::{self, Generator, Ingester},
    generator::settings::Common,
};
use processes::Processes;
use proptest::prelude::*;
use storage::id::Tenant;

use crate::{
    generator::{
        self, everything, is_excluded,
        reference::{Name, Sums, count, shown},
        span, tenants,
    },
    harness::{self, Spans, request},
    requests, settings,
};

#[test]
fn two_processes_are_one_dataflow() {
    let mut processes = Processes::new(settings(2), &[Ingester, Ingester], None);
    processes.form(&[0, 1], 2);
    processes.block_on(async {
        let tenant = Tenant::single();
        let (requests, truth) = requests(20, 10);
        for (index, spans) in requests.iter().enumerate() {
            processes.append(index % 2, &tenant, request(spans)).await;
            if index % 3 == 0 {
                processes.append((index + 1) % 2, &tenant, request(spans)).await;
            }
            let (trace, _) = spans[0];
            let sent: Vec<u64> =
                requests[..=index].iter().flatten().filter(|(id, _)| *id == trace).map(|(id, span)| harness::span_id(*id, *span)).collect();
            assert_eq!(processes.read(&tenant, harness::trace_id(trace)).await.len(), sent.len(), "acknowledged, so readable");
        }
        processes.flush(1).await;
        assert_eq!(processes.stored(&tenant).await, truth);
        for (trace, spans) in &truth {
            assert_eq!(&processes.read(&tenant, *trace).await, spans);
        }
    });
}

/// What happens, in a random order.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Some spans arrive, first at this ingester.
    Append(usize),
    /// The copies that are under way arrive.
    Copies,
    Flush(usize),
    /// The same processes form again, with so many workers each.
    Form(usize),
    Lose(usize),
    /// Those that were lost and have kept their logs come back.
    Return,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3usize).prop_map(Step::Append),
        2 => Just(Step::Copies),
        1 => (0..3usize).prop_map(Step::Flush),
        1 => (1..=2usize).prop_map(Step::Form),
        2 => (0..4usize).prop_map(Step::Lose),
        2 => Just(Step::Return),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 12, ..ProptestConfig::default() })]

    /// Whatever arrives where, how often and how late, on however many processes, and whoever is lost and comes back: blocks and recent data
    /// have each acknowledged span once, and each series is the truth.
    #[test]
    fn each_span_is_there_once_and_counts_once(
        ingesters in 1..=3usize,
        generators in 0..=1usize,
        threads in 1..=2usize,
        replicas in prop_oneof![Just(1usize), Just(3)],
        tick in prop_oneof![Just(5u64), Just(20), Just(40)],
        seed in any::<u64>(),
        steps in steps(),
    ) {
        let (of_tenant, tenant) = (everything(), Tenant::single());
        let settings = Settings { tick: Duration::from_millis(tick), commit_interval: Duration::from_millis(50), ..settings(threads) };
        let roles: Vec<Role> = [Ingester].repeat(ingesters).into_iter().chain([Generator].repeat(generators)).collect();
        let mut processes = Processes::new(settings, &roles, Some(tenants(of_tenant.clone(), Common::default())));
        let replicas = replicas.min(ingesters);
        let (mut present, mut gone_for_good): (Vec<usize>, Vec<usize>) = ((0..roles.len()).collect(), Vec::new());
        let mut threads = threads;
        processes.form(&present, threads);
        let (mut truth, mut counted) = (Spans::new(), BTreeMap::new());
        let mut under_way = Vec::new();
        for (number, step) in steps.into_iter().chain([Step::Copies, Step::Return, Step::Wait]).enumerate() {
            let here: Vec<usize> = present.iter().copied().filter(|index| roles[*index] == Ingester).collect();
            match step {
                Step::Append(first) => {
                    let spans: Vec<_> =
                        (0..20u64).map(|index| span(index % 5, number as u64 * 100 + index, seed % 1000 + index * 13)).collect();
                    for (index, (resource, span)) in spans.iter().enumerate() {
                        if !is_excluded(span) {
                            count(&mut counted, &of_tenant, resource, span);
                        }
                        let (trace, number) = (index as u64 % 5, number as u64 * 100 + index as u64);
                        truth.entry(harness::trace_id(trace)).or_default().push(harness::span_id(trace, number));
                    }
                    truth.values_mut().for_each(|spans| spans.sort_unstable());
                    let copies: Vec<usize> = (0..replicas.min(here.len())).map(|copy| here[(first + copy) % here.len()]).collect();
                    processes.block_on(async {
                        // A quorum has it when it is acknowledged; the last copy may take its time.
                        for (copy, index) in copies.into_iter().enumerate() {
                            for (part, spans) in spans.chunks(6).enumerate() {
                                if copy < 2 {
                                    processes.append(index, &tenant, generator::request(spans)).await;
                                } else {
                                    under_way.push((index, part, generator::request(spans)));
                                }
                            }
                        }
                        if replicas > 1 || here.len() == ingesters {
                            let trace = harness::trace_id(number as u64 % 5);
                            assert_eq!(processes.read(&tenant, trace).await, truth[&trace], "acknowledged, so readable");
                        }
                    });
                }
                Step::Copies => {
                    for (index, _, request) in std::mem::take(&mut under_way) {
                        if present.contains(&index) {
                            processes.block_on(processes.append(index, &tenant, request));
                        }
                    }
                }
                Step::Flush(index) => processes.block_on(processes.flush(here[index % here.len()])),
                Step::Form(with) => {
                    threads = with;
                    processes.form(&present, threads);
                }
                Step::Lose(index) => {
                    let others = here.iter().filter(|other| **other != index).count();
                    // Of what a quorum has one may be lost.
                    let may_go = if replicas > 1 { gone_for_good.is_empty() && others > 1 } else { others > 0 };
                    if present.contains(&index) && may_go {
                        processes.lose(index);
                        present.retain(|other| *other != index);
                        if replicas > 1 && roles[index] == Ingester {
                            gone_for_good.push(index);
                        }
                        processes.form(&present, threads);
                    }
                }
                Step::Return => {
                    let back: Vec<usize> = (0..roles.len()).filter(|index| !gone_for_good.contains(index)).collect();
                    if back != present {
                        present = back;
                        processes.form(&present, threads);
                    }
                }
                Step::Wait => std::thread::sleep(Duration::from_millis(300)),
            }
        }
        processes.block_on(async {
            for (trace, spans) in &truth {
                assert_eq!(&processes.read(&tenant, *trace).await, spans);
            }
            processes.flush(present[0]).await;
            assert_eq!(processes.stored(&tenant).await, truth);
            for (trace, spans) in &truth {
                assert_eq!(&processes.read(&tenant, *trace).await, spans);
            }
            for _ in 0..1000 {
                if shown_by_all(&processes, &roles, &tenant) == counted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(shown_by_all(&processes, &roles, &tenant), counted);
        });
    }
}

/// The series of all processes, none of which two show. Ingesters show none if there is a generator.
fn shown_by_all(processes: &Processes, roles: &[Role], tenant: &Tenant) -> BTreeMap<Name, Sums> {
    let mut all = BTreeMap::new();
    for (index, snapshot) in processes.snapshots() {
        let series = shown(&snapshot, tenant);
        assert!(series.is_empty() || roles[index] == Generator || !roles.contains(&Generator), "an ingester shows series");
        all.extend(series);
    }
    all
}

/// CPU seconds that this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("number")).sum();
    ticks as f64 / 100.0
}

/// What one more process costs: figures for whoever runs it with `--nocapture`, on a quiet machine and optimised.
#[test]
#[ignore = "measures"]
fn figures() {
    let spans_of_each = 400_000;
    for (roles, threads) in [(vec![Ingester], 1), (vec![Ingester], 2), (vec![Ingester; 2], 1), (vec![Ingester; 3], 1)] {
        let settings = Settings { resident_bytes: 1 << 30, ..Settings::default() };
        let mut processes = Processes::new(settings, &roles, None);
        let present: Vec<usize> = (0..roles.len()).collect();
        processes.form(&present, threads);
        let tenant = Tenant::single();
        processes.block_on(processes.flush(0));
        let (idle, began) = (cpu_seconds(), std::time::Instant::now());
        std::thread::sleep(Duration::from_secs(5));
        let idle = (cpu_seconds() - idle) / began.elapsed().as_secs_f64();
        let requests: Vec<_> = (0..spans_of_each / 200_u64)
            .map(|number| request(&(0..200).map(|index| (number * 8 + index / 25, index % 25)).collect::<Vec<_>>()))
            .collect();
        let (cpu, began) = (cpu_seconds(), std::time::Instant::now());
        processes.block_on(async {
            for (number, body) in requests.into_iter().enumerate() {
                processes.append(number % present.len(), &tenant, body).await;
            }
            processes.flush(0).await;
        });
        let (cpu, wall) = (cpu_seconds() - cpu, began.elapsed().as_secs_f64());
        let per_span = cpu * 1e6 / spans_of_each as f64;
        let text = format!(
            "{} processes of {threads} workers: {per_span:.2} us of CPU per span, {:.0} spans/s, idle {idle:.4} cores",
            present.len(),
            spans_of_each as f64 / wall,
        );
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
    }
}
