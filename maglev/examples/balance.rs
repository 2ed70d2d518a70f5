//! Prints how evenly slots are spread while members are down, and how many slots move when a member
//! is added or removed.
//!
//! `cargo run --release -p sluice-maglev --example balance`

use sluice_maglev::{Lists, Member, Seed, Table, TableSize, diff};

/// The number of seeds of each line; the median and the worst result are printed.
const SEEDS: u8 = 20;

fn main() {
    println!(
        "Load of the busiest member that is up, divided by the mean of the members that are up\n\
         (median and worst of {SEEDS} seeds), and the share of slots whose list is entirely\n\
         down, for lists of 2, 3 and 4 members.\n"
    );
    println!(
        "|  slots | members | slots per member | down | median | worst | all down, 2 | 3 | 4 |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (slots, members, downs) in [
        (4_093, 8, [1, 2, 3, 4]),
        (4_093, 40, [1, 2, 4, 8]),
        (65_537, 10, [1, 2, 3, 5]),
        (65_537, 100, [1, 5, 10, 20]),
        (65_537, 1_000, [1, 10, 50, 100]),
        (655_373, 100, [1, 5, 10, 20]),
        (655_373, 1_000, [1, 10, 50, 100]),
        (5_000_011, 4_000, [1, 40, 200, 400]),
    ] {
        spread(slots, members, &downs);
    }

    println!(
        "\nSlots that move beyond those that must, as a share of all slots\n\
         (median and worst of {SEEDS} seeds).\n"
    );
    println!(
        "|  slots | members | weights | add one | worst | remove one | worst \
         | one weight + 10 % | worst |"
    );
    println!("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (slots, members) in [
        (4_093, 8),
        (4_093, 40),
        (65_537, 10),
        (65_537, 100),
        (65_537, 650),
        (655_373, 100),
        (655_373, 1_000),
    ] {
        movement(slots, members, "equal", |_| 100);
        movement(slots, members, "1 to 16", |member| 100 * (1 + member * 7 % 16));
    }
}

fn seed(number: u8) -> Seed {
    Seed::new([number; 16])
}

fn names(members: usize) -> Vec<String> {
    (0..members).map(|member| format!("backend-{member}")).collect()
}

fn build(names: &[String], slots: u32, seed: &Seed, weight: impl Fn(u32) -> u32) -> Table {
    let members: Vec<Member<'_>> =
        names.iter().zip(0..).map(|(name, member)| Member::new(name, weight(member))).collect();
    Table::build(&members, TableSize::new(slots).expect("a table size"), seed).expect("a table")
}

fn median_and_worst(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}

fn spread(slots: u32, members: usize, downs: &[usize]) {
    let names = names(members);
    let seeds = if slots > 1_000_000 { 5 } else { SEEDS };
    let lists: Vec<[Lists; 3]> = (0..seeds)
        .map(|number| {
            let table = build(&names, slots, &seed(number), |_| 1);
            [2, 3, 4].map(|length| Lists::new(&table, length))
        })
        .collect();
    for &down in downs {
        let up = |member: u16| usize::from(member) >= down;
        let mut all_down = [0.0; 3];
        let mut loads = Vec::new();
        for lists in &lists {
            for (all_down, lists) in all_down.iter_mut().zip(lists) {
                let chosen = lists.choose(up);
                *all_down += chosen.iter().filter(|chosen| chosen.is_none()).count() as f64;
            }
            let mut load = vec![0u32; members];
            for member in lists[2].choose(up).into_iter().flatten() {
                load[usize::from(member)] += 1;
            }
            let mean = f64::from(slots) / (members - down) as f64;
            loads.push(f64::from(*load.iter().max().expect("members")) / mean);
        }
        let (median, worst) = median_and_worst(loads);
        let [two, three, four] =
            all_down.map(|slots_down| 100.0 * slots_down / f64::from(slots) / f64::from(seeds));
        let per_member = slots as usize / members;
        println!(
            "| {slots} | {members} | {per_member} | {down} | {median:.3} | {worst:.3} \
             | {two:.2} % | {three:.3} % | {four:.4} % |"
        );
    }
}

fn movement(slots: u32, members: usize, weights: &str, weight: impl Fn(u32) -> u32 + Copy) {
    let names = names(members + 1);
    let mut changes = [const { Vec::new() }; 3];
    for number in 0..SEEDS {
        let seed = seed(number);
        let few = build(&names[..members], slots, &seed, weight);
        let many = build(&names, slots, &seed, weight);
        let heavier = build(&names[..members], slots, &seed, |member| match member {
            3 => weight(member) * 11 / 10,
            _ => weight(member),
        });
        for (values, (before, after)) in
            changes.iter_mut().zip([(&few, &many), (&many, &few), (&few, &heavier)])
        {
            let change = diff(before, after).expect("equal sizes");
            values.push(100.0 * f64::from(change.moved - change.needed) / f64::from(slots));
        }
    }
    let [add, remove, reweigh] = changes.map(median_and_worst);
    println!(
        "| {slots} | {members} | {weights} | {:.2} % | {:.2} % | {:.2} % | {:.2} % \
         | {:.2} % | {:.2} % |",
        add.0, add.1, remove.0, remove.1, reweigh.0, reweigh.1
    );
}
