//! The table of packet cases on the wire: programs attached to virtual Ethernet, each in a network namespace of its own. What a test run
//! of a program cannot make is here: merged packets, packets outside the linear part of their buffer, VLAN tags beside the bytes, frames
//! that end inside their IP header.

use std::cell::Cell;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sluice_tests::packets::build::{Client, ETHERNET, Transport};
use sluice_tests::packets::cases::{self, Case};
use sluice_tests::packets::isolation::missing;
use sluice_tests::packets::loaded::takes;
use sluice_tests::packets::oracle::Oracle;
use sluice_tests::packets::wire::{Link, Wire, WireHost, can_carry, refused};
use sluice_tests::packets::world::{Balancer, Counters, Frame, Outcome, World};

/// A world whose backends are behind links of jumbo frames.
fn wide() -> World {
    World::new().with_mtu(9000)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let mut trials = Vec::new();
    let mut add = |name: String, test: Test| {
        let trial = Trial::ignorable_test(name, move || on_link(test));
        trials.push(match &missing {
            None => trial,
            // The kind is printed beside the name: it says why the test does not run.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        });
    };
    for case in cases::balancing().into_iter().filter(|case| case.applies(can_carry)) {
        add(format!("balancer: {}", case.name), Box::new(move |link| run(&case, link)));
    }
    for case in cases::decapsulating() {
        if case.frames.iter().all(|(frame, _)| can_carry(frame)) {
            let name = format!("backend: {}", case.name);
            add(name, Box::new(move |link| case.run(&mut WireHost::new(link)?).map(|()| Completion::Completed)));
        }
    }
    add("headers outside the linear part of the buffer are read and stay as they are".into(), Box::new(non_linear));
    add("a checksum that is still to be completed stays so".into(), Box::new(partial));
    add(
        "merged segments of 60,000 bytes leave as one packet with the size of their segments".into(),
        Box::new(merged_segments),
    );
    add("merged datagrams leave as one packet with the size of their segments".into(), Box::new(merged_datagrams));
    trials.push(Trial::test("every case goes through a program: here, in a test run, or both", nothing_left_out));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What neither way of running a program takes would be proven in memory only.
fn nothing_left_out() -> Result<(), Failed> {
    let balancing = cases::balancing().into_iter().filter(|case| !case.applies(can_carry) && !case.applies(takes));
    let decapsulating = cases::decapsulating().into_iter().filter(|case| {
        let all = |accepts: fn(&Frame) -> bool| case.frames.iter().all(|(frame, _)| accepts(frame));
        !all(can_carry) && !all(takes)
    });
    let left_out: Vec<_> = balancing.map(|case| case.name).chain(decapsulating.map(|case| case.name)).collect();
    if left_out.is_empty() { Ok(()) } else { Err(format!("no program is given {left_out:?}").into()) }
}

/// A test that has interfaces to itself while it runs.
type Test = Box<dyn FnOnce(&mut Link) -> anyhow::Result<Completion> + Send>;

/// Runs a test on the interfaces of its thread, which the next test gets unless this one fails.
fn on_link(test: Test) -> Result<Completion, Failed> {
    thread_local! {
        static LINK: Cell<Option<Link>> = const { Cell::new(None) };
    }

    let run = || {
        let mut link = match LINK.take() {
            Some(link) => link,
            None => Link::new()?,
        };
        let completion = test(&mut link)?;
        LINK.set(Some(link));
        anyhow::Ok(completion)
    };
    run().map_err(|error| format!("{error:#}").into())
}

fn run(case: &Case, link: &mut Link) -> anyhow::Result<Completion> {
    if let Some(why) = case.frames().find_map(refused) {
        return Ok(Completion::ignored_with(why));
    }
    case.run(&mut Wire::new(link)?).map(|()| Completion::Completed)
}

/// A program on the wire beside an oracle that says what should become of each frame.
struct Judged<'a> {
    wire: Wire<'a>,
    oracle: Oracle,
    total: Counters,
    forwarded: usize,
}

impl<'a> Judged<'a> {
    fn new(link: &'a mut Link, world: &World) -> anyhow::Result<Self> {
        let mut wire = Wire::new(link)?;
        wire.configure(world)?;
        let mut oracle = Oracle::default();
        oracle.configure(world);
        Ok(Self { wire, oracle, total: Counters::default(), forwarded: 0 })
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let expected = self.oracle.judge(frame);
        self.forwarded += usize::from(matches!(expected, Outcome::Forward(_)));
        cases::send(&mut self.wire, frame, &expected, &mut self.total)
    }
}

/// Packets of more than a memory page, cut into a linear part and the rest at every byte of their headers and at some behind them.
fn non_linear(link: &mut Link) -> anyhow::Result<Completion> {
    let mut judged = Judged::new(link, &wide())?;
    let clients = Client::each().into_iter().chain([
        Client { options: 40, ..Client::tcp4() },
        Client { options: 4, ..Client::udp4() },
        Client { tcp_options: 40, ..Client::tcp6() },
        Client { transport: Transport::TcpSyn, ..Client::tcp4() },
        Client::tcp4().to_port(80),
        Client { hops: 0, ..Client::tcp6() },
    ]);
    let mut sent = 0;
    for client in clients {
        let client = Client { payload: 5000, ..client };
        for linear in (ETHERNET as u16..ETHERNET as u16 + 84).chain([200, 4000]) {
            judged.wire.linear = Some(linear);
            judged.send(&client.frame().into()).with_context(|| format!("{linear} bytes linear of {client:?}"))?;
            let tagged = Frame { vlan: true, ..client.frame().into() };
            judged.send(&tagged).with_context(|| format!("{linear} bytes linear of {client:?}, tagged"))?;
            sent += 1;
        }
    }
    ensure!(judged.forwarded > sent / 2, "only {} of {sent} packets were forwarded", judged.forwarded);
    Ok(Completion::Completed)
}

fn partial(link: &mut Link) -> anyhow::Result<Completion> {
    let mut judged = Judged::new(link, &wide())?;
    judged.wire.partial = true;
    let mut count = 0;
    for payload in [0, 1, 64, 1400, 5000] {
        for options in [0, 12, 40] {
            for client in Client::each() {
                let client = Client { payload, options, ..client };
                judged.send(&client.frame().into()).with_context(|| format!("{client:?}"))?;
                count += 1;
            }
        }
    }
    ensure!(judged.forwarded == count, "only {} of {count} packets were forwarded", judged.forwarded);
    Ok(Completion::Completed)
}

/// Merged packets of several sizes, all headers linear or as little as the kernel takes.
fn merged(link: &mut Link, clients: &[Client], payloads: &[usize], size: u32) -> anyhow::Result<Completion> {
    let frames: Vec<Frame> = clients
        .iter()
        .flat_map(|client| payloads.iter().map(|&payload| Client { payload, ..client.clone() }))
        .map(|client| Frame {
            segment_size: size,
            segments: client.payload.div_ceil(size as usize) as u32,
            ..client.frame().into()
        })
        .collect();
    if let Some(why) = frames.iter().find_map(refused) {
        return Ok(Completion::ignored_with(why));
    }
    let mut judged = Judged::new(link, &World::new())?;
    for linear in [None, Some(1)] {
        judged.wire.linear = linear;
        for frame in &frames {
            ensure!(can_carry(frame), "the kernel would count other segments than {}", frame.segments);
            judged.send(frame).with_context(|| format!("{} bytes", frame.bytes.len()))?;
        }
    }
    ensure!(judged.forwarded == frames.len() * 2, "only {} were forwarded", judged.forwarded);
    // One byte more in each segment than fits the way to the backend.
    let mut narrow = World::new();
    let headers = frames.iter().map(|frame| frame.bytes.len()).min().unwrap_or(0) - payloads[0];
    narrow = narrow.with_mtu((headers - ETHERNET) as u32 + size + 19);
    judged.wire.configure(&narrow)?;
    judged.oracle.configure(&narrow);
    judged.forwarded = 0;
    for frame in &frames {
        judged.send(frame)?;
    }
    ensure!(judged.forwarded == 0, "{} were forwarded over too small a link", judged.forwarded);
    Ok(Completion::Completed)
}

fn merged_segments(link: &mut Link) -> anyhow::Result<Completion> {
    let clients = [
        Client::tcp4(),
        Client::tcp6(),
        Client { tcp_options: 12, ..Client::tcp4() },
        Client { options: 8, ..Client::tcp4() },
        Client { traffic_class: 0xbb, ..Client::tcp6() },
    ];
    merged(link, &clients, &[1461, 2920, 20_000, 60_000], 1460)
}

fn merged_datagrams(link: &mut Link) -> anyhow::Result<Completion> {
    merged(link, &[Client::udp4(), Client::udp6()], &[1201, 2400, 20_000, 60_000], 1200)
}
