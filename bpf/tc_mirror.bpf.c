// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Sends a copy of what a rule with mirror_to has let in to the interface that the rule names. xdp_firewall says in the
 * metadata which rule that was: XDP itself can pass a packet or redirect it, not both. Never changes or drops the packet
 * itself, and always lets the next program run. A copy that cannot be made is counted.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Mapped into the agent, which alone writes it. */
struct mirror_table mirrors SEC(".bss.mirrors");

/* Numbers of the guarded interfaces, by index. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FW_IFACES);
	__type(key, __u32);
	__type(value, __u32);
} mirror_ifaces SEC(".maps");

/* By number of the interface on which the packet arrived. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FW_IFACES);
	__type(key, __u32);
	__type(value, struct mirror_count);
} mirror_counts SEC(".maps");

enum { PACKET_LOOPBACK = 5, ENODEV = 19, VLAN_TAG_BYTES = 4 };

static __always_inline struct mirror_count *count_of(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, other = FW_OTHER_IFACE;
	__u32 *number = bpf_map_lookup_elem(&mirror_ifaces, &ifindex);

	return bpf_map_lookup_elem(&mirror_counts, number ? number : &other);
}

static __always_inline void lose(const struct __sk_buff *skb, enum mirror_loss why)
{
	struct mirror_count *count = count_of(skb);

	if (count)
		count->lost[why]++;
}

SEC("tc")
int tc_mirror(struct __sk_buff *skb)
{
	struct xdp_meta *meta = (void *)(long)skb->data_meta;
	__u32 monitor, slot, packets, bytes, mtu = 0;
	struct mirror_count *count;
	long refused;

	if ((void *)(meta + 1) > (void *)(long)skb->data || meta->magic != XDP_META_MAGIC) {
		/* What this host sends to a group comes back here without having arrived anywhere. */
		if (mirrors.active && skb->pkt_type != PACKET_LOOPBACK)
			lose(skb, MIRROR_NO_METADATA);
		return TCX_NEXT;
	}
	slot = meta->slot;
	if (slot >= FW_SLOTS)
		return TCX_NEXT; /* no rule decided */
	monitor = mirrors.monitor[slot];
	if (!monitor)
		return TCX_NEXT;
	if (monitor == MIRROR_ABSENT) {
		lose(skb, MIRROR_NO_INTERFACE);
		return TCX_NEXT;
	}
	/* What GRO has put together is longer than any MTU, and cut again on its way out: then its segments must fit. */
	refused = bpf_check_mtu(skb, monitor, &mtu, 0, BPF_MTU_CHK_SEGS);
	if (refused) {
		lose(skb, refused == -ENODEV ? MIRROR_NO_INTERFACE : MIRROR_MTU);
		return TCX_NEXT;
	}
	packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	bytes = skb->len + (skb->vlan_present ? VLAN_TAG_BYTES : 0);
	if (bpf_clone_redirect(skb, monitor, 0)) {
		lose(skb, MIRROR_CLONE_FAILED);
		return TCX_NEXT;
	}
	count = count_of(skb);
	if (count) {
		count->packets += packets;
		count->bytes += bytes;
	}
	return TCX_NEXT;
}
