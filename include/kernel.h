/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types, as far as our programs use them. Stands in for a vmlinux.h of several megabytes, so that the build
 * needs neither bpftool nor the BTF of the build host. All of these are UAPI: their layout never changes, except for the
 * two contexts, whose accesses the verifier rewrites.
 */
#pragma once
#define __VMLINUX_H__ /* bpf_helpers.h and friends ask for it */

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_DEVMAP = 14,
	BPF_MAP_TYPE_CPUMAP = 16,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_F_INNER_MAP = 1 << 12,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
	BPF_RB_AVAIL_DATA = 0,
	BPF_F_CURRENT_NETNS = -1,
	BPF_MTU_CHK_SEGS = 1,
};

enum xdp_action { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

/* What a TC program returns; TCX_NEXT lets the next one run, and is the same number as TC_ACT_UNSPEC. */
enum { TCX_NEXT = -1, TCX_DROP = 2 };

struct xdp_md {
	__u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

/* Named by BTF: the kernel finds the timer in a map's value by this name and size. */
struct bpf_timer {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* A socket, as programs see it. */
struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
	__be16 dst_port;
	__u16 pad;
	__u32 dst_ip4, dst_ip6[4], state;
	__s32 rx_queue_mapping;
};

enum { BPF_TCP_LISTEN = 10 };

struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr, daddr;
			__be16 sport, dport;
		} ipv4;
		struct {
			__be32 saddr[4], daddr[4];
			__be16 sport, dport;
		} ipv6;
	};
};

/* What a routing table is asked, and says. */
struct bpf_fib_lookup {
	__u8 family, l4_protocol;
	__be16 sport, dport;
	__u16 tot_len;
	__u32 ifindex;
	__u32 rt_metric;
	__be32 src[4], dst[4]; /* IPv4 in the first */
	__be16 h_vlan_proto, h_vlan_TCI;
	__u8 smac[6], dmac[6];
};

enum {
	BPF_FIB_LKUP_RET_SUCCESS = 0,
	BPF_FIB_LKUP_RET_BLACKHOLE = 1,
	BPF_FIB_LKUP_RET_UNREACHABLE = 2,
	BPF_FIB_LKUP_RET_PROHIBIT = 3,
	BPF_FIB_LKUP_RET_NOT_FWDED = 4,	  /* no route, or not one of unicast */
	BPF_FIB_LKUP_RET_FWD_DISABLED = 5, /* the interface does not forward, so nobody looked */
	BPF_FIB_LKUP_RET_UNSUPP_LWT = 6,  /* the route encapsulates */
	BPF_FIB_LKUP_RET_NO_NEIGH = 7,	  /* a route, and its next hop's hardware address is not known */
};

enum { AF_INET = 2, AF_INET6 = 10 };

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id;
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys __attribute__((aligned(8)));
	__u64 tstamp;
	__u32 wire_len, gso_segs;
};

struct ethhdr {
	__u8 h_dest[6], h_source[6];
	__be16 h_proto;
} __attribute__((packed));

struct iphdr {
	__u8 ihl : 4, version : 4; /* little endian only, as every target of ours */
	__u8 tos;
	__be16 tot_len, id, frag_off;
	__u8 ttl, protocol;
	__sum16 check;
	__be32 saddr, daddr;
};

struct ipv6hdr {
	__u8 priority : 4, version : 4;
	__u8 flow_lbl[3];
	__be16 payload_len;
	__u8 nexthdr, hop_limit;
	__be32 saddr[4], daddr[4];
};

struct tcphdr {
	__be16 source, dest;
	__be32 seq, ack_seq;
	__u8 res1 : 4, doff : 4;
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

enum {
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_8021Q = 0x8100,
	ETH_P_IPV6 = 0x86dd,
	ETH_P_SLOW = 0x8809,   /* LACP */
	ETH_P_PAE = 0x888e,    /* EAPOL */
	ETH_P_8021AD = 0x88a8,
	ETH_P_LLDP = 0x88cc,
};

enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_AH = 51,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
	IPPROTO_UDPLITE = 136,
};
