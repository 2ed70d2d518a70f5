//! Known answers: published ones, and tables that running balancers use and that must not change.

use sluice_maglev::{
    BuildError, DiffError, Lists, MAX_MEMBERS, Member, Seed, Table, TableSize, diff,
};

const SEED: Seed = Seed::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

fn size(slots: u32) -> TableSize {
    TableSize::new(slots).unwrap()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("web-{number}")).collect()
}

fn equal(names: &[String]) -> Vec<Member<'_>> {
    names.iter().map(|name| Member::new(name, 1)).collect()
}

/// FNV-1a over the numbers, low byte first.
fn digest(numbers: impl Iterator<Item = u16>) -> u64 {
    numbers.flat_map(u16::to_le_bytes).fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[test]
fn weights_1_and_2_at_1021_slots_and_1_and_10_at_65537_get_exact_shares() {
    let count = |weights: [u32; 2], slots| {
        let members = [Member::new("a", weights[0]), Member::new("b", weights[1])];
        Table::build(&members, size(slots), &SEED).unwrap().slot_counts().to_vec()
    };
    assert_eq!(count([1, 2], 1021), [340, 681]);
    assert_eq!(count([1, 10], 65_537), [5958, 59_579]);
}

#[test]
fn with_100_slots_per_member_and_more_shares_differ_by_at_most_1_percent() {
    let names = names(655);
    let table = Table::build(&equal(&names), TableSize::DEFAULT, &SEED).unwrap();
    assert!(table.slot_counts().iter().all(|&count| count == 100 || count == 101));
}

/// Balancers of different versions run at the same time while a fleet is updated, and must agree.
/// If this test fails, the tables have changed, which is a breaking change of the crate.
#[test]
fn tables_and_lists_are_the_same_in_every_version() {
    let names = names(50);
    let members: Vec<Member<'_>> =
        names.iter().zip(1..).map(|(name, weight)| Member::new(name, weight)).collect();
    let table = Table::build(&members, TableSize::DEFAULT, &SEED).unwrap();
    let lists = Lists::new(&table, 4);
    let entries = (0..lists.slots()).flat_map(|slot| lists.list(slot));
    assert_eq!(
        (digest(table.owners().iter().copied()), digest(entries), table.preference_list(7, 4)),
        (7_582_469_456_444_416_002, 5_137_851_110_476_603_845, vec![37, 19, 35, 48])
    );

    // Lists that need draws.
    let members = [("huge", 10_000), ("a", 10), ("b", 20), ("c", 30)]
        .map(|(name, weight)| Member::new(name, weight));
    let table = Table::build(&members, TableSize::DEFAULT, &SEED).unwrap();
    let lists = Lists::new(&table, 3);
    let entries = (0..lists.slots()).flat_map(|slot| lists.list(slot));
    assert_eq!(digest(entries), 3_593_387_068_385_484_028);
}

#[test]
fn another_seed_gives_another_table() {
    let names = names(50);
    let tables = [SEED, Seed::new([9; 16])]
        .map(|seed| Table::build(&equal(&names), TableSize::DEFAULT, &seed).unwrap());
    let same = tables[0].owners().iter().zip(tables[1].owners()).filter(|(a, b)| a == b).count();
    // One slot in 50 by chance: 1311 of 65,537.
    assert!((1100..1500).contains(&same), "{same}");
}

#[test]
fn a_single_member_owns_every_slot_and_has_no_successor() {
    let table =
        Table::build(&[Member::new("idle", 0), Member::new("only", 3)], size(251), &SEED).unwrap();
    assert_eq!(table.owners(), [1; 251]);
    assert_eq!(table.slot_counts(), [0, 251]);
    assert_eq!(table.preference_list(250, 3), [1]);
    assert_eq!(Lists::new(&table, 3).choose(|member| member != 1), [None; 251]);
}

#[test]
fn as_many_members_as_slots_get_one_slot_each() {
    let names = names(251);
    let table = Table::build(&equal(&names), size(251), &SEED).unwrap();
    assert_eq!(table.slot_counts(), [1; 251]);
    let lists = Lists::new(&table, 4);
    assert!((0..251).all(|slot| lists.list(slot).count() == 4));
}

#[test]
fn the_largest_number_of_members_can_be_built() {
    let names = names(MAX_MEMBERS);
    let table = Table::build(&equal(&names), size(655_373), &SEED).unwrap();
    assert!(table.slot_counts().iter().all(|&count| count == 10 || count == 11));
}

#[test]
fn lists_are_complete_when_one_member_owns_nearly_everything() {
    let names = names(6);
    let mut members = equal(&names);
    members[3].weight = 1_000_000;
    // Member 3 leaves the others one slot.
    let table = Table::build(&members, size(1021), &SEED).unwrap();
    assert_eq!(table.slot_counts()[3], 1020);
    let second = (0..6).find(|&member| table.slot_counts()[usize::from(member)] == 1).unwrap();
    let lists = Lists::new(&table, 6);
    for slot in 0..1021 {
        let list: Vec<u16> = lists.list(slot).collect();
        let mut sorted = list.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
        // Members without a slot come last, in the same order in every list.
        assert!(list[..2].contains(&3) && list[..2].contains(&second), "{list:?}");
        assert_eq!(list[2..], table.preference_list(0, 6)[2..]);
    }
}

#[test]
fn members_drawn_for_a_list_are_drawn_by_weight() {
    let members = [("huge", 65_000), ("one", 134), ("two", 268), ("three", 135)]
        .map(|(name, weight)| Member::new(name, weight));
    let table = Table::build(&members, TableSize::DEFAULT, &SEED).unwrap();
    let mut seconds = [0u32; 4];
    for second in Lists::new(&table, 2).choose(|member| member != 0).into_iter().flatten() {
        seconds[usize::from(second)] += 1;
    }
    let taken = f64::from(seconds[1] + seconds[2] + seconds[3]);
    assert_eq!(taken, 65_537.0);
    for (count, share) in seconds[1..].iter().zip([0.25, 0.5, 0.25]) {
        assert!((f64::from(*count) / taken - share).abs() < 0.02, "{seconds:?}");
    }
}

#[test]
fn build_errors_give_the_reason_and_the_remedy() {
    let error =
        |members: &[Member<'_>], slots| Table::build(members, size(slots), &SEED).unwrap_err();
    assert_eq!(error(&[], 251), BuildError::NoWeight);
    assert_eq!(
        error(&[Member::new("a", 0)], 251).to_string(),
        "no member has a weight above 0; give at least one a weight"
    );
    let twins = [Member::new("a", 1), Member::new("b", 2), Member::new("a", 0)];
    assert_eq!(error(&twins, 251), BuildError::DuplicateName("a".into()));
    assert_eq!(error(&twins, 251).to_string(), "two members are named \"a\"; names must be unique");

    let many = names(MAX_MEMBERS + 1);
    assert_eq!(
        error(&equal(&many[..252]), 251).to_string(),
        "252 members have weight but the table has only 251 slots; \
         choose a larger table size, best 100 slots per member"
    );
    assert_eq!(
        error(&equal(&many), 65_537).to_string(),
        "65536 members are too many for one table; the maximum is 65535"
    );
}

#[test]
fn tables_of_different_sizes_are_not_compared() {
    let tables =
        [251, 257].map(|slots| Table::build(&[Member::new("a", 1)], size(slots), &SEED).unwrap());
    let error = diff(&tables[0], &tables[1]).unwrap_err();
    assert_eq!(error, DiffError { before: size(251), after: size(257) });
    assert_eq!(
        error.to_string(),
        "tables of 251 and 257 slots cannot be compared; build both with one size"
    );
}

#[test]
fn a_diff_lists_the_members_that_gain_or_lose_slots() {
    let before =
        Table::build(&[Member::new("b", 1), Member::new("a", 1)], size(251), &SEED).unwrap();
    let after =
        Table::build(&[Member::new("c", 1), Member::new("a", 1)], size(251), &SEED).unwrap();
    let change = diff(&before, &after).unwrap();
    let names: Vec<&str> = change.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(change.members[1].lost, before.slot_counts()[0]);
    assert_eq!(change.members[2].gained, after.slot_counts()[0]);
    assert!(diff(&before, &before).unwrap().members.is_empty());
}

#[test]
fn debug_output_omits_the_seed() {
    assert_eq!(format!("{SEED:?}"), "Seed(..)");
}
