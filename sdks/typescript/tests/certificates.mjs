// A certificate of one's own, made by hand (X.509 in DER, RFC 5280), so that the tests need no other program.

import { generateKeyPairSync, sign } from "node:crypto";

const der = (tag, ...parts) => {
  const content = Buffer.concat(parts);
  const length = content.length < 128 ? [content.length] : [0x82, content.length >> 8, content.length & 255];
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
};
const sequence = (...parts) => der(0x30, ...parts);
const oid = (hex) => der(0x06, Buffer.from(hex, "hex"));
const ED25519 = sequence(oid("2b6570"));
const name = (text) => sequence(der(0x31, sequence(oid("550403"), der(0x0c, Buffer.from(text)))));
const time = (text) => der(0x17, Buffer.from(text));

/** `{key, cert}` in PEM, self-signed, of a server at 127.0.0.1. */
export function selfSigned() {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const address = sequence(oid("551d11"), der(0x04, sequence(der(0x87, Buffer.from([127, 0, 0, 1])))));
  const authority = sequence(oid("551d13"), der(0x01, Buffer.from([255])), der(0x04, sequence(der(0x01, Buffer.from([255])))));
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))), der(0x02, Buffer.from([1])), ED25519, name("test"), sequence(time("200101000000Z"), time("491231235959Z")), name("test"),
    publicKey.export({ format: "der", type: "spki" }), der(0xa3, sequence(address, authority)),
  );
  const whole = sequence(body, ED25519, der(0x03, Buffer.from([0]), sign(null, body, privateKey)));
  const cert = `-----BEGIN CERTIFICATE-----\n${whole.toString("base64").match(/.{1,64}/g).join("\n")}\n-----END CERTIFICATE-----\n`;
  return { key: privateKey.export({ format: "pem", type: "pkcs8" }), cert };
}
