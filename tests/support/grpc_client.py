"""A gRPC client that knows nothing of the agent but its address: it learns the service by reflection.

    grpc_client.py [OPTIONS] ADDRESS services        their names, a line each
    grpc_client.py [OPTIONS] ADDRESS health NAME     the health of one, NAME may be empty
    grpc_client.py [OPTIONS] ADDRESS watch NAME      the same, each time that it changes
    grpc_client.py [OPTIONS] ADDRESS stream JSON     the alerts that a StreamAlertsRequest asks for, a line of JSON each
    grpc_client.py [OPTIONS] ADDRESS sum JSON        waits for a line on stdin, then reads until the rule "end"; one line:
                                                     alerts, gaps and alerts missed
    grpc_client.py [OPTIONS] ADDRESS hold NUMBER     opens so many streams, and says so; then waits for a line on stdin,
                                                     opens one more, and says what came of it

A call that fails ends as the line "STATUS: details". Options: --metadata NAME=VALUE, --ca FILE.
"""

import argparse
import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

SERVICE = "ebpfsentinel.v1.AlertStreamService"


def wire(name, *fields):
    """A message type of the protocol of reflection or health: (name, number, type), the type "string", "int", "bytes" or
    that of a message; a list where it is repeated."""
    message = descriptor_pb2.DescriptorProto(name=name)
    types = {"string": 9, "bytes": 12, "int": 5}
    for field, number, kind in fields:
        repeated = isinstance(kind, list)
        kind = kind[0] if repeated else kind
        one = message.field.add(name=field, number=number, label=3 if repeated else 1, type=types.get(kind, 11))
        if kind not in types:
            one.type_name = f".wire.{kind}"
    return message


POOL = descriptor_pool.DescriptorPool()
POOL.Add(descriptor_pb2.FileDescriptorProto(name="wire.proto", package="wire", syntax="proto3", message_type=[
    wire("Ask", ("file_containing_symbol", 4, "string"), ("list_services", 7, "string")),
    wire("Service", ("name", 1, "string")),
    wire("Services", ("service", 1, ["Service"])),
    wire("Files", ("file", 1, ["bytes"])),
    wire("Answer", ("files", 4, "Files"), ("services", 6, "Services")),
    wire("Whose", ("service", 1, "string")),
    wire("Health", ("status", 1, "int")),
]))


def message_class(name):
    descriptor = POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(POOL).GetPrototype(descriptor)


def reflect(channel, metadata, **question):
    method = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                   message_class("wire.Ask").SerializeToString, message_class("wire.Answer").FromString)
    return next(method(iter([message_class("wire.Ask")(**question)]), metadata=metadata))


def alerts(channel, metadata, request):
    """The stream that the request asks for, by the description that the server gives of itself."""
    if "learnt" not in globals():
        for file in reflect(channel, metadata, file_containing_symbol=SERVICE).files.file:
            POOL.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        globals()["learnt"] = True
    (method,) = POOL.FindServiceByName(SERVICE).methods
    asked = message_class(method.input_type.full_name)
    call = channel.unary_stream(f"/{SERVICE}/{method.name}", asked.SerializeToString,
                                message_class(method.output_type.full_name).FromString)
    return call(json_format.Parse(request, asked()), metadata=metadata)


def say(*words):
    print(*words, flush=True)


def health(channel, metadata, service, method):
    unary = channel.unary_unary if method == "Check" else channel.unary_stream
    call = unary(f"/grpc.health.v1.Health/{method}", message_class("wire.Whose").SerializeToString,
                 message_class("wire.Health").FromString)
    answer = call(message_class("wire.Whose")(service=service), metadata=metadata)
    for one in [answer] if method == "Check" else answer:
        say(["UNKNOWN", "SERVING", "NOT_SERVING"][one.status])


def stream(channel, metadata, request):
    for event in alerts(channel, metadata, request):
        say(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))


def total(channel, metadata, request):
    events = alerts(channel, metadata, request)
    next(events)
    say("ready")
    sys.stdin.readline()
    told = gaps = missed = 0
    for event in events:
        if event.HasField("gap"):
            gaps, missed = gaps + 1, missed + event.gap.missed
        elif event.rule_id == "end":
            break
        else:
            told += 1
    say(told, gaps, missed)


def hold(channel, metadata, number):
    streams = [alerts(channel, metadata, "{}") for _ in range(int(number))]
    for one in streams:
        one.initial_metadata()
    say("ready")
    sys.stdin.readline()
    next(alerts(channel, metadata, "{}"))


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--metadata", action="append", default=[])
    options.add_argument("--ca")
    options.add_argument("address")
    options.add_argument("command")
    options.add_argument("argument", nargs="?", default="")
    given = options.parse_args()
    metadata = [tuple(pair.split("=", 1)) for pair in given.metadata]
    if given.ca:
        with open(given.ca, "rb") as file:
            channel = grpc.secure_channel(given.address, grpc.ssl_channel_credentials(file.read()))
    else:
        channel = grpc.insecure_channel(given.address)
    try:
        if given.command == "services":
            for service in reflect(channel, metadata, list_services="*").services.service:
                say(service.name)
        elif given.command in ("health", "watch"):
            health(channel, metadata, given.argument, "Check" if given.command == "health" else "Watch")
        else:
            {"stream": stream, "sum": total, "hold": hold}[given.command](channel, metadata, given.argument)
    except grpc.RpcError as error:
        say(f"{error.code().name}: {error.details()}")


main()
