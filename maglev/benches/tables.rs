//! Times tables and preference lists, and the pseudo-code of the Maglev paper in the same run.
//!
//! `cargo bench -p sluice-maglev`; docs/benchmarks.md in the repository explains the figures.

extern crate alloc;

use std::hint::black_box;
use std::time::Duration;

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use siphasher::sip128::SipHasher24;
use sluice_maglev::{Lists, Member, Seed, Table, TableSize, diff};

#[path = "../src/paper.rs"]
mod paper;

const SLOTS: [u32; 3] = [4_093, 65_537, 655_373];
const MEMBERS: [usize; 4] = [10, 100, 1_000, 4_000];
const KEY: [u8; 16] = *b"sixteen byte key";

/// The maximum size of the paper's permutation matrix, in bytes; larger cases are left out.
const LARGEST_MATRIX: usize = 270_000_000;

fn names(members: usize) -> Vec<String> {
    (0..members).map(|member| format!("backend-{member}")).collect()
}

fn members<'a>(names: &'a [String], weight: impl Fn(u32) -> u32) -> Vec<Member<'a>> {
    names.iter().zip(0..).map(|(name, member)| Member::new(name, weight(member))).collect()
}

fn table(names: &[String], slots: u32) -> Table {
    Table::build(&members(names, |_| 1), TableSize::new(slots).expect("a prime"), &Seed::new(KEY))
        .expect("a table")
}

/// Offset and skip as in the paper, by modulo.
fn offset_skip(names: &[String], slots: u32) -> Vec<(u32, u32)> {
    let slots = u64::from(slots);
    names
        .iter()
        .map(|name| {
            let hash = SipHasher24::new_with_key(&KEY).hash(name.as_bytes());
            ((hash.h1 % slots) as u32, (hash.h2 % (slots - 1)) as u32 + 1)
        })
        .collect()
}

/// Runs `bench` for each number of slots and of members.
fn each_size(
    c: &mut Criterion,
    group: &str,
    bench: impl Fn(&mut BenchmarkGroup<'_, WallTime>, &str, &[String], u32),
) {
    let mut group = c.benchmark_group(group);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    for slots in SLOTS {
        for members in MEMBERS {
            bench(&mut group, &format!("{slots} slots, {members} members"), &names(members), slots);
        }
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    each_size(c, "build", |group, case, names, slots| {
        let size = TableSize::new(slots).expect("a prime");
        let seed = Seed::new(KEY);
        let equal = members(names, |_| 1);
        group.bench_function(BenchmarkId::new("sluice", case), |b| {
            b.iter(|| Table::build(black_box(&equal), size, &seed));
        });
        let weighted = members(names, |member| 1 + member * 7 % 16);
        group.bench_function(BenchmarkId::new("sluice, weights 1 to 16", case), |b| {
            b.iter(|| Table::build(black_box(&weighted), size, &seed));
        });
        group.bench_function(BenchmarkId::new("paper without matrix", case), |b| {
            b.iter(|| paper::populate_without_matrix(&offset_skip(black_box(names), slots), slots));
        });
        if names.len() * slots as usize * size_of::<u32>() <= LARGEST_MATRIX {
            group.bench_function(BenchmarkId::new("paper", case), |b| {
                b.iter(|| {
                    let permutation =
                        paper::permutations(&offset_skip(black_box(names), slots), slots);
                    paper::populate(&permutation, slots)
                });
            });
        }
    });
}

fn lists(c: &mut Criterion) {
    each_size(c, "lists", |group, case, names, slots| {
        let table = table(names, slots);
        for length in [2, 4] {
            group.bench_function(BenchmarkId::new(format!("build, length {length}"), case), |b| {
                b.iter(|| Lists::new(black_box(&table), length));
            });
        }
        let lists = Lists::new(&table, 4);
        let mut chosen = vec![None; slots as usize];
        // Members 3, 3 + period, 3 + 2 * period, ... are down.
        for (state, period) in [("one down", names.len()), ("a fifth down", 5)] {
            group.bench_function(BenchmarkId::new(format!("choose, {state}"), case), |b| {
                b.iter(|| {
                    lists.choose_into(|member| usize::from(member) % period != 3, &mut chosen);
                    black_box(&mut chosen);
                });
            });
        }
    });
}

fn compare(c: &mut Criterion) {
    each_size(c, "diff", |group, case, names, slots| {
        let (before, after) = (table(names, slots), table(&names[1..], slots));
        group.bench_function(BenchmarkId::new("one removed", case), |b| {
            b.iter(|| diff(black_box(&before), black_box(&after)));
        });
    });
}

criterion_group!(tables, build, lists, compare);
criterion_main!(tables);
