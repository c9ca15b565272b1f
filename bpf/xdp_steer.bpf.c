// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Spreads flows over CPUs: xdp_steer, the last program of the chain, sends what has passed all others to a CPU, and
 * xdp_steered counts there what has arrived. Both directions of a flow meet on one CPU, and its packets keep their order.
 * What is no flow (ARP, what cannot be parsed) stays where it arrived.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "common_packet.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Always 0, which the verifier cannot know; see forget_path(). */
volatile __u32 nothing;

/* The CPUs among which flows are spread, and how many they are. */
const volatile __u32 steer_targets;
const volatile __u32 steer_target[STEER_TARGETS];

/* Drawn by the agent at each load, odd: nobody outside can choose which CPU gets a flow. */
const volatile __u64 steer_secret[4];

/* By number of the CPU. An entry has xdp_steered, and a queue that the agent sizes. */
struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, 8);
} steer_cpus SEC(".maps");

/* By number of the CPU that packets are sent to. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_count);
} steer_counts SEC(".maps");

/* Reads any packet; false when it is no flow's. A function of its own, verified once. */
__noinline int read_packet(struct xdp_md *ctx, struct packet *out)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = { .nothing = nothing };
	int why = parse_frame(data, data_end, &p);

	if (!out)
		return false;
	*out = p;
	return !why;
}

/* One end of a flow. */
static __always_inline __u64 hash_end(const __u64 address[2], __u16 port)
{
	__u64 hash = address[0] * steer_secret[0] + address[1] * steer_secret[1] + port * steer_secret[2];

	hash ^= hash >> 32;
	return hash * steer_secret[3];
}

/* The same for both directions. All fragments of a datagram stay together, as only the first one has ports. */
static __always_inline __u32 hash_flow(const struct packet *p)
{
	bool ports = p->has_ports && !p->fragment;
	__u64 hash = hash_end(p->src, ports ? p->src_port : 0) + hash_end(p->dst, ports ? p->dst_port : 0);

	hash ^= hash >> 32;
	hash *= steer_secret[0];
	return hash >> 32;
}

SEC("xdp")
int xdp_steer(struct xdp_md *ctx)
{
	struct packet p = {};
	struct steer_count *count;
	__u64 at;
	__u32 cpu;
	long action;

	if (!read_common_packet(ctx, &p) && !read_packet(ctx, &p))
		return XDP_PASS;
	at = (__u64)hash_flow(&p) * steer_targets >> 32;
	cpu = steer_target[at & (STEER_TARGETS - 1)];
	action = bpf_redirect_map(&steer_cpus, cpu, XDP_PASS);
	if (action == XDP_REDIRECT) {
		count = bpf_map_lookup_elem(&steer_counts, &cpu);
		if (count)
			count->steered++;
	}
	return action;
}

SEC("xdp/cpumap")
int xdp_steered(struct xdp_md *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct steer_count *count = bpf_map_lookup_elem(&steer_counts, &cpu);

	if (count)
		count->arrived++;
	return XDP_PASS;
}
