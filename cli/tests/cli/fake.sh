#!/bin/sh
# Stands in for nats-server, the gateway and the processors; it is whichever it is called by the name of.
name=${0##*/}
if [ "$1" = --version ]; then
    echo "nats-server: v${FAKE_NATS_VERSION:-2.15.1}"
    exit
fi
env >"$FAKE_ENVS/$name"
echo $$ >"$FAKE_PIDS/$name"

case $name in
nats-server)
    while [ "$1" != --ports_file_dir ]; do shift; done
    echo '{"nats":["nats://127.0.0.1:1"]}' >"$2/nats-server_$$.ports"
    ;;
"$FAKE_DIES")
    echo 'out of paper' >&2
    exit 3
    ;;
waybill-gateway)
    address=${FAKE_GRPC_ADDR:-127.0.0.1:1}
    echo "{\"fields\":{\"message\":\"listening\",\"grpc_addr\":\"$address\",\"ops_addr\":\"127.0.0.1:1\",\"operations_addr\":\"127.0.0.1:1\"}}"
    ;;
waybill-payment-sandbox)
    echo '{"fields":{"message":"listening","grpc_addr":"127.0.0.1:2"}}'
    ;;
*)
    echo '{"fields":{"message":"listening","ops_addr":"127.0.0.1:3"}}'
    echo '{"fields":{"message":"processing"}}'
    ;;
esac

if [ "$name" = "$FAKE_STUBBORN" ]; then trap '' TERM; fi
exec sleep 600
