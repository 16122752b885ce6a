/** RFC 3339 times, with any offset and any number of fraction digits. `Date` reads more than those, and fewer. */

const RFC3339 = /^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))$/;
const MS_PER_DAY = 86_400_000;
const FIRST_S = -62_135_596_800;

/** Microseconds since the epoch, digits past the microsecond cut off; null for a text that is no such time. */
export function microseconds(text: string): bigint | null {
  const match = RFC3339.exec(text);
  if (match === null) return null;
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number) as [number, number, number, number, number, number];
  const [aheadHours, aheadMinutes] = [Number(match[9] ?? 0), Number(match[10] ?? 0)];
  // 60 is a leap second.
  if (hour > 23 || minute > 59 || second > 60 || aheadHours > 23 || aheadMinutes > 59) return null;
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  // A day that its month does not have would have become another one. There is no year 0 in other languages.
  if (year < 1 || date.getUTCFullYear() !== year || date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return null;
  const ahead = (aheadHours * 60 + aheadMinutes) * (match[8] === "-" ? -1 : 1);
  const seconds = (date.getTime() / MS_PER_DAY) * 86_400 + hour * 3600 + (minute - ahead) * 60 + second;
  // Years begin with 1 in UTC too.
  if (seconds < FIRST_S) return null;
  return BigInt(seconds) * 1_000_000n + BigInt((match[7] ?? "").slice(0, 6).padEnd(6, "0"));
}
