//! The table of packet cases through programs attached to virtual Ethernet, each in its own network
//! namespace, with frames that a test run does not accept: merged packets, non-linear buffers, VLAN
//! tags in metadata, truncated IP headers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sluice_datapath::abi::VipOptions;
use sluice_tests::packets::addresses::{VIP_V4, VIP_V6};
use sluice_tests::packets::bindings::namespace::missing;
use sluice_tests::packets::bindings::test_run::pool::clear;
use sluice_tests::packets::bindings::test_run::{accepts_at_tc, accepts_at_xdp};
use sluice_tests::packets::bindings::wire::{
    VethLink, WireBackend, WireBalancer, WireClamp, link_accepts,
};
use sluice_tests::packets::bindings::{BalancerBinding, ClampBinding};
use sluice_tests::packets::cases::{self, Case};
use sluice_tests::packets::compare;
use sluice_tests::packets::expectation::{BalancerCounters, Expectation};
use sluice_tests::packets::fixture::{DNS, Fixture, MTU, WEB};
use sluice_tests::packets::frames::{Client, ETHERNET, Frame, L4Kind};
use sluice_tests::packets::fuzz::{Generator, corpus, fixtures};
use sluice_tests::packets::oracle::Oracle;
use sluice_tests::packets::oracle::clamp::clamped;

/// A fixture with an MTU of 9000 towards its backends.
fn wide() -> Fixture {
    Fixture::new().with_mtu(9000)
}

/// A fixture whose services use GUE and allow no UDP checksum.
fn gue(mtu: u32) -> Fixture {
    let options = VipOptions::GUE.with(VipOptions::ZERO_UDP_CHECKSUM);
    Fixture { vip_options: [(WEB, options), (DNS, options)].into(), ..Fixture::new().with_mtu(mtu) }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let mut trials = Vec::new();
    let mut add = |name: String, test: LinkTest| {
        let trial = Trial::ignorable_test(name, move || on_link(test));
        trials.push(match &missing {
            None => trial,
            // The kind is printed with the name and contains the reason for skipping.
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
        });
    };
    for case in cases::balancing().into_iter().filter_map(|case| case.only(link_accepts)) {
        add(format!("balancer: {}", case.name), Box::new(move |link| run(&case, link)));
    }
    for case in cases::decapsulation().into_iter().filter_map(|case| case.only(link_accepts)) {
        let name = format!("backend: {}", case.name);
        add(
            name,
            Box::new(move |link| match case.unsupported() {
                Some(why) => Ok(Completion::ignored_with(why)),
                None => case.run(&mut WireBackend::new(link)?).map(|()| Completion::Completed),
            }),
        );
    }
    for case in cases::mss_clamp().into_iter().filter_map(|case| case.only(link_accepts)) {
        let name = format!("clamp: {}", case.name);
        add(
            name,
            Box::new(move |link| {
                case.run(&mut WireClamp::new(link)?).map(|()| Completion::Completed)
            }),
        );
    }
    add("clamp: a partial checksum stays partial".into(), Box::new(clamped_partial));
    add(
        "clamp: options outside the linear part of the buffer are found".into(),
        Box::new(clamped_non_linear),
    );
    add(
        "merged segments leave as one packet with the same segment size".into(),
        Box::new(|link| judged(link, |judged| merged_segments(judged, Fixture::new()))),
    );
    add(
        "merged datagrams leave as one packet with the same segment size".into(),
        Box::new(|link| judged(link, |judged| merged_datagrams(judged, Fixture::new()))),
    );
    add(
        "GUE: merged segments leave as one packet without an outer checksum".into(),
        Box::new(|link| judged(link, |judged| merged_segments(judged, gue(MTU)))),
    );
    add(
        "GUE: merged datagrams leave as one packet without an outer checksum".into(),
        Box::new(|link| judged(link, |judged| merged_datagrams(judged, gue(MTU)))),
    );
    add(
        "headers outside the linear part of the buffer are read and stay unchanged".into(),
        Box::new(|link| judged(link, non_linear)),
    );
    add(
        "a partial checksum stays partial".into(),
        Box::new(|link| judged(link, |judged| partial(judged, &wide()))),
    );
    add(
        "GUE: the outer checksum is valid for a packet with a partial checksum".into(),
        Box::new(|link| judged(link, |judged| partial(judged, &gue(9000)))),
    );
    add(
        "the program and the oracle agree on the corpus".into(),
        Box::new(|link| judged(link, corpus_frames)),
    );
    add(
        "the program and the oracle agree on random frames".into(),
        Box::new(|link| judged(link, random_frames)),
    );
    trials.push(Trial::test(
        "every frame of a case goes through a program in the kernel",
        nothing_left_out,
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    clear();
    conclusion.exit_code()
}

/// A frame that neither this link nor a test run accepts would be tested in memory only.
fn nothing_left_out() -> Result<(), Failed> {
    let left_out = |frame: &Frame| !link_accepts(frame) && !accepts_at_tc(frame);
    let balancing = cases::balancing().into_iter();
    let balancing =
        balancing.filter_map(|case| case.only(|frame| left_out(frame) && !accepts_at_xdp(frame)));
    let balancing = balancing.map(|case| case.name);
    let decapsulating = cases::decapsulation()
        .into_iter()
        .filter_map(|case| case.only(left_out))
        .map(|case| case.name);
    let clamping =
        cases::mss_clamp().into_iter().filter_map(|case| case.only(left_out)).map(|case| case.name);
    let names: Vec<_> = balancing.chain(decapsulating).chain(clamping).collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(format!("no program gets all frames of {names:?}").into())
    }
}

/// A test with exclusive use of the interfaces.
type LinkTest = Box<dyn FnOnce(&mut VethLink) -> anyhow::Result<Completion> + Send>;

/// Runs a test on the interfaces of its thread, which the next test reuses unless this one fails.
fn on_link(test: LinkTest) -> Result<Completion, Failed> {
    thread_local! {
        static LINK: Cell<Option<VethLink>> = const { Cell::new(None) };
    }

    let run = || {
        let mut link = match LINK.take() {
            Some(link) => link,
            None => VethLink::new()?,
        };
        let completion = test(&mut link)?;
        LINK.set(Some(link));
        anyhow::Ok(completion)
    };
    run().map_err(|error| format!("{error:#}").into())
}

fn run(case: &Case, link: &mut VethLink) -> anyhow::Result<Completion> {
    if let Some(why) = case.frames().find_map(|frame| link.refuses(frame)) {
        return Ok(Completion::ignored_with(why));
    }
    WireBalancer::lend(link, |mut wire| case.run(&mut wire))?;
    Ok(Completion::Completed)
}

/// A program on the link with an oracle.
struct Judged<'a> {
    wire: WireBalancer<'a>,
    oracle: Oracle,
    total: BalancerCounters,
    forwarded: usize,
}

/// Runs a test with a program on the link and an oracle, both without a fixture.
fn judged(
    link: &mut VethLink,
    test: impl FnOnce(&mut Judged<'_>) -> anyhow::Result<Completion>,
) -> anyhow::Result<Completion> {
    WireBalancer::lend(link, |wire| {
        test(&mut Judged {
            wire,
            oracle: Oracle::default(),
            total: BalancerCounters::default(),
            forwarded: 0,
        })
    })
}

impl Judged<'_> {
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        self.oracle.configure(fixture);
        self.wire.configure(fixture)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let expected = self.oracle.judge(frame);
        self.forwarded += usize::from(matches!(expected, Expectation::Forward(_)));
        compare::send(&mut self.wire, frame, &expected, &mut self.total)
    }
}

/// Packets longer than a memory page, with a linear part that ends at every byte of their headers
/// and at some later bytes.
fn non_linear(judged: &mut Judged<'_>) -> anyhow::Result<Completion> {
    judged.configure(&wide())?;
    let clients = Client::each().into_iter().chain([
        Client { options: 40, ..Client::tcp4() },
        Client { options: 4, ..Client::udp4() },
        Client { tcp_options: 40, ..Client::tcp6() },
        Client { transport: L4Kind::TcpSyn, ..Client::tcp4() },
        Client::tcp4().to_port(80),
        Client { ttl: 0, ..Client::tcp6() },
    ]);
    let mut sent = 0;
    for client in clients {
        let client = Client { payload: 5000, ..client };
        for linear in (ETHERNET as u16..ETHERNET as u16 + 84).chain([200, 4000]) {
            judged.wire.linear = Some(linear);
            judged
                .send(&client.frame().into())
                .with_context(|| format!("{linear} bytes linear of {client:?}"))?;
            let tagged = Frame { vlan: true, ..client.frame().into() };
            judged
                .send(&tagged)
                .with_context(|| format!("{linear} bytes linear of {client:?}, tagged"))?;
            sent += 1;
        }
    }
    ensure!(
        judged.forwarded > sent / 2,
        "only {} of {sent} packets were forwarded",
        judged.forwarded
    );
    Ok(Completion::Completed)
}

fn partial(judged: &mut Judged<'_>, fixture: &Fixture) -> anyhow::Result<Completion> {
    judged.configure(fixture)?;
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
    ensure!(
        judged.forwarded == count,
        "only {} of {count} packets were forwarded",
        judged.forwarded
    );
    Ok(Completion::Completed)
}

/// SYN-ACKs like the backend's kernel sends them: the checksum field holds the sum of the
/// pseudo-header, which the clamp must not change.
fn clamped_partial(link: &mut VethLink) -> anyhow::Result<Completion> {
    let mut clamp = WireClamp::new(link)?;
    clamp.partial = true;
    clamp.configure(&[IpAddr::from(VIP_V4).into(), IpAddr::from(VIP_V6).into()], cases::LARGEST)?;
    for v6 in [false, true] {
        for before in 0..=36 {
            let told =
                |size: u32| [&[1; 36][..before], &[2, 4], &(size as u16).to_be_bytes()].concat();
            let frame = cases::handshake(v6, true, true, &told(8960));
            let (left, counted) = (clamp.send(&frame.clone().into())?, clamp.clamped()?);
            let mut expected = frame.clone();
            let value = frame
                .windows(2)
                .position(|bytes| bytes == 8960_u16.to_be_bytes())
                .context("there is an MSS option")?;
            expected[value..value + 2]
                .copy_from_slice(&(cases::LARGEST[usize::from(v6)] as u16).to_be_bytes());
            ensure!(left == expected, "{frame:02x?} became {left:02x?} instead of {expected:02x?}");
            ensure!(counted == u64::from(v6) * 37 + before as u64 + 1, "the counter is {counted}");
        }
    }
    Ok(Completion::Completed)
}

/// SYN-ACKs longer than a memory page, with a linear part that ends at every byte of their headers.
fn clamped_non_linear(link: &mut VethLink) -> anyhow::Result<Completion> {
    let vips = [IpAddr::from(VIP_V4).into(), IpAddr::from(VIP_V6).into()];
    let mut clamp = WireClamp::new(link)?;
    clamp.configure(&vips, cases::LARGEST)?;
    for v6 in [false, true] {
        let told = [&[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1][..], &[2, 4, 0x23, 0]].concat();
        let mut bytes = cases::handshake(v6, true, true, &told);
        bytes.extend([0; 5000]);
        for linear in ETHERNET as u16..bytes.len().min(110) as u16 {
            clamp.linear = Some(linear);
            let frame = Frame::from(bytes.clone());
            let expected =
                clamped(&frame, &vips, cases::LARGEST).context("the MSS is too large")?;
            let left = clamp.send(&frame)?;
            ensure!(
                left == expected,
                "{linear} bytes linear: {left:02x?} instead of {expected:02x?}"
            );
        }
    }
    Ok(Completion::Completed)
}

/// Merged packets of several sizes, with all headers or as few bytes as possible in the linear
/// part.
fn merged(
    judged: &mut Judged<'_>,
    fixture: Fixture,
    clients: &[Client],
    payloads: &[usize],
    size: u32,
) -> anyhow::Result<Completion> {
    let frames: Vec<Frame> = clients
        .iter()
        .flat_map(|client| payloads.iter().map(|&payload| Client { payload, ..client.clone() }))
        .map(|client| Frame {
            segment_size: size,
            segments: client.payload.div_ceil(size as usize) as u32,
            ..client.frame().into()
        })
        .collect();
    if let Some(why) = frames.iter().find_map(|frame| judged.wire.refuses(frame)) {
        return Ok(Completion::ignored_with(why));
    }
    judged.configure(&fixture)?;
    for linear in [None, Some(1)] {
        judged.wire.linear = linear;
        for frame in &frames {
            ensure!(link_accepts(frame), "the kernel would not count {} segments", frame.segments);
            judged.send(frame).with_context(|| format!("{} bytes", frame.bytes.len()))?;
        }
    }
    ensure!(judged.forwarded == frames.len() * 2, "only {} were forwarded", judged.forwarded);
    // Segments one byte longer than the MTU towards the backend.
    let headers = frames.iter().map(|frame| frame.bytes.len()).min().unwrap_or(0) - payloads[0];
    let narrow = fixture.with_mtu((headers - ETHERNET) as u32 + size + 19);
    judged.configure(&narrow)?;
    judged.forwarded = 0;
    for frame in &frames {
        judged.send(frame)?;
    }
    ensure!(judged.forwarded == 0, "{} were forwarded despite the MTU", judged.forwarded);
    // Segments as long as the MTU without the outer header, with the resegment option: TCP without
    // IP options is resegmented.
    let vip_options: BTreeMap<_, _> =
        [WEB, DNS].map(|service| (service, VipOptions::RESEGMENT)).into();
    for (client, frames) in clients.iter().zip(frames.chunks(payloads.len())) {
        let headers = client.frame().len() - ETHERNET - client.payload;
        let vip_options = vip_options.clone();
        judged.configure(&Fixture {
            vip_options,
            ..Fixture::new().with_mtu(headers as u32 + size)
        })?;
        let cut = client.transport != L4Kind::Udp && client.options == 0;
        for linear in [None, Some(1)] {
            judged.wire.linear = linear;
            judged.forwarded = 0;
            for frame in frames {
                judged.send(frame)?;
            }
            let expected = if cut { frames.len() } else { 0 };
            ensure!(
                judged.forwarded == expected,
                "{} of {expected} were resegmented, of {client:?}",
                judged.forwarded
            );
        }
    }
    Ok(Completion::Completed)
}

fn merged_segments(judged: &mut Judged<'_>, fixture: Fixture) -> anyhow::Result<Completion> {
    let clients = [
        Client::tcp4(),
        Client::tcp6(),
        Client { tcp_options: 12, ..Client::tcp4() },
        Client { options: 8, ..Client::tcp4() },
        Client { tos: 0xbb, ..Client::tcp6() },
    ];
    merged(judged, fixture, &clients, &[1461, 2920, 20_000, 60_000], 1460)
}

fn merged_datagrams(judged: &mut Judged<'_>, fixture: Fixture) -> anyhow::Result<Completion> {
    merged(judged, fixture, &[Client::udp4(), Client::udp6()], &[1201, 2400, 20_000, 60_000], 1200)
}

/// The frames of the corpus, fixture by fixture, except those that the link cannot carry.
fn corpus_frames(judged: &mut Judged<'_>) -> anyhow::Result<Completion> {
    let entries = corpus::read(&corpus::directory())?;
    for (name, make) in fixtures::FIXTURES {
        judged.configure(&make())?;
        for (file, entry) in entries.iter().filter(|(_, entry)| entry.fixture == *name) {
            for (number, frame) in (1..).zip(&entry.frames) {
                if link_accepts(frame) && judged.wire.refuses(frame).is_none() {
                    judged
                        .send(frame)
                        .with_context(|| format!("{file}, frame {number}: {}", entry.comment))?;
                }
            }
        }
    }
    ensure!(judged.forwarded > 0, "no frame of the corpus was forwarded");
    Ok(Completion::Completed)
}

/// Frames of the generator.
fn random_frames(judged: &mut Judged<'_>) -> anyhow::Result<Completion> {
    /// Default number of frames.
    const FRAMES: u64 = 6_000;

    let count = match std::env::var("RANDOM_FRAMES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("RANDOM_FRAMES is `{text}`; it must be a number"))?,
        Err(_) => FRAMES,
    };
    let seed = fastrand::u64(..);
    let mut generator = Generator::new(seed);
    for (_, make) in fixtures::FIXTURES {
        judged.configure(&make())?;
        for number in 0..count / fixtures::FIXTURES.len() as u64 {
            let frame = generator.frame();
            if link_accepts(&frame) && judged.wire.refuses(&frame).is_none() {
                let sent = judged.send(&frame);
                sent.with_context(|| {
                    format!("frame {number} of seed {seed}: {:02x?}", frame.bytes)
                })?;
            }
        }
    }
    Ok(Completion::Completed)
}
