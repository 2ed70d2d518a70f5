//! A packet socket that sends and receives frames with metadata: offloads (`PACKET_VNET_HDR`) and a
//! VLAN tag (`PACKET_AUXDATA`), see packet(7).
#![expect(unsafe_code, reason = "calls libc for packet sockets")]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use socket2::{Domain, MaybeUninitSlice, MsgHdrMut, Protocol, Socket, Type};

/// Timeout for a frame that is lost. Delivery takes microseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// `struct virtio_net_hdr` (`uapi/linux/virtio_net.h`), in host byte order for packet sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Offload {
    /// [`Offload::PARTIAL`]: the L4 checksum is partial (`CHECKSUM_PARTIAL`).
    pub(super) flags: u8,
    /// Type of a merged packet: [`Offload::TCP4`], [`Offload::TCP6`], [`Offload::UDP`], or 0.
    pub(super) kind: u8,
    /// Bytes in the linear part of the buffer; a hint from the sender.
    pub(super) linear: u16,
    /// Bytes of payload in each segment of a merged packet.
    pub(super) segment_size: u16,
    /// Offset of the first checksummed byte.
    pub(super) checksum_start: u16,
    /// Offset of the checksum from there.
    pub(super) checksum_offset: u16,
}

impl Offload {
    /// Bytes of the header.
    const SIZE: usize = 10;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
    pub(super) const PARTIAL: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub(super) const TCP4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub(super) const TCP6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`, since Linux 6.2.
    pub(super) const UDP: u8 = 5;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [self.flags, self.kind, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.linear, self.segment_size, self.checksum_start, self.checksum_offset];
        for (two, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            two.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            linear: word(2),
            segment_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Captured {
    /// The bytes, without a VLAN tag in metadata.
    pub(super) bytes: Vec<u8>,
    /// The VLAN tag in metadata: EtherType and TCI.
    pub(super) tag: Option<(u16, u16)>,
    /// The offloads.
    pub(super) offload: Offload,
}

/// A socket on one interface: it injects frames and receives incoming ones.
pub(super) struct PacketSocket {
    socket: Socket,
    buffer: Vec<MaybeUninit<u8>>,
}

impl PacketSocket {
    /// A socket on the interface of an index.
    pub(super) fn new(interface: u32) -> anyhow::Result<Self> {
        const LARGEST: usize = Offload::SIZE + (1 << 17);
        const BUFFER: usize = 4 << 20;

        let everything = (libc::ETH_P_ALL as u16).to_be();
        // Protocol 0, so that it receives nothing before it is bound to its interface.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
            .context("cannot open a socket")?;
        for (option, name) in [
            (libc::PACKET_VNET_HDR, "PACKET_VNET_HDR"),
            (libc::PACKET_AUXDATA, "PACKET_AUXDATA"),
            (PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING"),
        ] {
            switch_on(&socket, option).with_context(|| format!("the kernel refuses {name}"))?;
        }
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        bind(&socket, everything, interface).context("cannot bind a packet socket")?;
        Ok(Self { socket, buffer: vec![MaybeUninit::uninit(); LARGEST] })
    }

    /// Injects a frame.
    pub(super) fn send(&self, offload: Offload, bytes: &[u8]) -> io::Result<()> {
        let header = offload.to_bytes();
        let sent = self.socket.send_vectored(&[IoSlice::new(&header), IoSlice::new(bytes)])?;
        if sent == header.len() + bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Waits for the next frame.
    pub(super) fn receive(&mut self) -> anyhow::Result<Captured> {
        self.take(0).with_context(|| format!("no frame within {PATIENCE:?}"))
    }

    /// The frames that have arrived.
    pub(super) fn drain(&mut self) -> anyhow::Result<Vec<Captured>> {
        let mut frames = Vec::new();
        loop {
            match self.take(libc::MSG_DONTWAIT) {
                Ok(frame) => frames.push(frame),
                Err(error) => match error.downcast_ref::<io::Error>() {
                    Some(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(frames),
                    _ => return Err(error),
                },
            }
        }
    }

    fn take(&mut self, flags: i32) -> anyhow::Result<Captured> {
        let mut control = [MaybeUninit::uninit(); 64];
        let (length, control_length, truncated) = {
            let mut buffers = [MaybeUninitSlice::new(&mut self.buffer)];
            let mut message =
                MsgHdrMut::new().with_buffers(&mut buffers).with_control(&mut control);
            let length = self.socket.recvmsg(&mut message, flags)?;
            (length, message.control_len(), message.flags().is_truncated())
        };
        ensure!(!truncated, "a frame is longer than {} bytes", self.buffer.len());
        let bytes = initialised(&self.buffer[..length]);
        let (header, bytes) = bytes.split_first_chunk().context("a frame without its header")?;
        Ok(Captured {
            bytes: bytes.to_vec(),
            tag: tag(initialised(&control[..control_length]))?,
            offload: Offload::from_bytes(header),
        })
    }
}

/// `PACKET_IGNORE_OUTGOING` of `uapi/linux/if_packet.h`.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// The VLAN tag in the control message of a frame: `struct cmsghdr`, then `struct tpacket_auxdata`.
fn tag(control: &[u8]) -> anyhow::Result<Option<(u16, u16)>> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const VLAN_VALID: u32 = 1 << 4;

    let auxiliary = control.get(HEADER..HEADER + 20).context("a frame without PACKET_AUXDATA")?;
    let word = |at: usize| u16::from_ne_bytes([auxiliary[at], auxiliary[at + 1]]);
    let status = u32::from_ne_bytes([auxiliary[0], auxiliary[1], auxiliary[2], auxiliary[3]]);
    Ok((status & VLAN_VALID != 0).then(|| (word(18), word(16))))
}

fn initialised(bytes: &[MaybeUninit<u8>]) -> &[u8] {
    // SAFETY: callers pass only bytes that the kernel has written, by the length that it returned.
    unsafe { &*(std::ptr::from_ref(bytes) as *const [u8]) }
}

fn switch_on(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let one: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an integer of the given size.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const one).cast(),
            size,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(socket: &Socket, protocol: u16, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a complete `sockaddr_ll`, and its family says so.
    let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
