/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How much of each flow is copied to the agent, by direction. src/flow/budget.rs keeps the same budget for captures that are
 * read without the kernel; these are the rules of both.
 *
 * What a direction is told from others by: source, destination, protocol, ports, and two VLAN ids, outer and inner, as they
 * were on the wire. Ports are those of TCP and UDP; other protocols have none.
 *
 * A packet that is no IP is not looked at. One of IP that cannot be parsed (include/parse.h) is recorded whole, belongs to
 * no flow and spends nothing. All others, in the order in which they pass, after sampling has chosen them:
 *
 * - Fragments, whichever, and what carries other packets (IPv4 and IPv6 in IP, GRE, UDP to the port of VXLAN) have no
 *   budget: they are recorded whole. All fragments of a protocol between two addresses are one flow without ports.
 * - TCP: a SYN (with or without ACK) starts the direction anew: nothing is spent, nothing is known of its protocol. A packet
 *   with payload is within the budget while less than stream_depth bytes are spent; it then spends the payload that its IP
 *   header claims, so the last one may go beyond. One without payload is within the budget while fewer than
 *   IDS_EMPTY_PACKETS + stream_depth / IDS_EMPTY_SHARE of them were recorded: acknowledgements of a long download must
 *   not be recorded for ever.
 * - All else, UDP first: a packet is within the budget while fewer than udp_packets are spent; it then spends one. After
 *   IDS_SILENT_SECS without a packet the direction starts anew.
 *
 * A packet within the budget is recorded whole. Past it, those with SYN, FIN or RST, and the first one that comes
 * IDS_HEARTBEAT_SECS or more after the direction's last record, are recorded with their headers only (of TCP with options, of
 * UDP 8 bytes, of others none), and spend nothing. Everything else is added to unseen packets and bytes (of frames, without
 * tags that the kernel took out), which the next record of the direction carries and clears.
 *
 * A packet that should be recorded and finds no room spends nothing, is added to the unseen ones, and sets the lost flag,
 * which the next record carries and clears.
 *
 * The clock is the kernel's jiffies; in a replay it is the capture's, in units of 2^IDS_REPLAY_TICK_SHIFT nanoseconds. Silence
 * and heartbeats are differences of 32 bits of it. Which entry a direction has, is the table's: sets of IDS_WAYS, the one that
 * was silent the longest is replaced, and counted. A direction whose entry was replaced starts anew.
 *
 * A packet that is forwarded arrives and leaves: it is looked at when it arrives, if the interface is inspected, and then
 * not again.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
