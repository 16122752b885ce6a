// Package rfc3339 reads RFC 3339 times, with any offset and any number of fraction digits, and no others.
package rfc3339

import (
	"regexp"
	"strconv"
	"time"
)

var form = regexp.MustCompile(`^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))$`)

var first = time.Date(1, time.January, 1, 0, 0, 0, 0, time.UTC).Unix()

// Microseconds since the epoch, digits past the microsecond cut off; false for a text that is no such time.
func Microseconds(text string) (int64, bool) {
	match := form.FindStringSubmatch(text)
	if match == nil {
		return 0, false
	}
	number := func(place int) int {
		value, _ := strconv.Atoi(match[place])
		return value
	}
	year, month, day, hour, minute, second := number(1), number(2), number(3), number(4), number(5), number(6)
	aheadHours, aheadMinutes := number(9), number(10)
	// 60 is a leap second.
	if hour > 23 || minute > 59 || second > 60 || aheadHours > 23 || aheadMinutes > 59 || year == 0 {
		return 0, false
	}
	date := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if int(date.Month()) != month || date.Day() != day {
		return 0, false
	}
	ahead := aheadHours*60 + aheadMinutes
	if match[8] == "-" {
		ahead = -ahead
	}
	seconds := date.Unix() + int64(hour*3600+(minute-ahead)*60+second)
	// Years begin with 1 in UTC too.
	if seconds < first {
		return 0, false
	}
	fraction, _ := strconv.Atoi((match[7] + "000000")[:6])
	return seconds*1_000_000 + int64(fraction), true
}
