import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

import com.sun.management.OperatingSystemMXBean;

import org.apache.flink.api.common.RuntimeExecutionMode;
import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.connector.datagen.source.GeneratorFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.table.types.logical.BooleanType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.table.types.logical.VarCharType;
import org.apache.flink.types.Row;

/**
 * Flink's side of the comparison (run.py): queries over a log that is in memory. Arguments: the log as a table, seconds of lateness, passes over
 * the log to warm up, passes to time. Each line of the input is a query, and one job; each line of the output is what came of it, as JSON.
 *
 * <p>Row times are whole milliseconds in Flink, and the log's are microseconds. So a microsecond of the log is a millisecond here, and a second of
 * a query a thousand seconds: no two times become one, and every interval ends where it ends.
 */
public final class Peer {
    /** Columns of the table, behind the time in microseconds since the log's beginning. */
    private static final String[] TEXTS = {
        "event_id", "tenant_id", "agent_id", "kind", "decision", "reason", "data_access", "destination", "tool", "action", "target",
    };
    private static final String[] FLAGS = {"mutates_state"};
    private static final String NULL = "\\N";
    /** As often as the engine looks. */
    private static final int EVENTS_OF_A_WATERMARK = 2048;
    /** Event time between two passes: longer than every window and the lateness. */
    private static final long PAUSE_US = 3_600_000_000L;
    private static final Pattern SECONDS = Pattern.compile("INTERVAL '([0-9.]+)' SECOND");

    // The job's functions run in this process, and find here what they read and write.
    private static RowData[] events;
    private static long[] times;
    private static volatile int timedFrom;
    private static volatile Moment began;
    private static volatile Moment ended;
    private static final List<String> found = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        read(Path.of(arguments[0]));
        long latenessUs = Long.parseLong(arguments[1]) * 1_000_000;
        int warm = Integer.parseInt(arguments[2]);
        int timed = Integer.parseInt(arguments[3]);
        PrintStream output = System.out;
        // What Flink has to say is not mixed up with the answers.
        System.setOut(System.err);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String query = input.readLine(); query != null; query = input.readLine()) {
            run(scaled(query), latenessUs, warm, timed);
            double seconds = (ended.clockNs - began.clockNs) / 1e9;
            double processorSeconds = (ended.processorNs - began.processorNs) / 1e9;
            output.println("{\"events\":" + (long) events.length * timed + ",\"seconds\":" + seconds + ",\"processor_seconds\":" + processorSeconds
                + ",\"passes\":" + (warm + timed) + ",\"alerts\":[" + String.join(",", found) + "]}");
            output.flush();
        }
    }

    private static void read(Path path) throws Exception {
        List<String> lines = Files.readAllLines(path);
        events = new RowData[lines.size()];
        times = new long[lines.size()];
        for (int place = 0; place < events.length; place++) {
            String[] values = lines.get(place).split("\t", -1);
            times[place] = Long.parseLong(values[0]);
            GenericRowData row = new GenericRowData(TEXTS.length + FLAGS.length);
            for (int column = 0; column < row.getArity(); column++) {
                String value = values[1 + column];
                boolean isText = column < TEXTS.length;
                row.setField(column, value.equals(NULL) ? null : isText ? StringData.fromString(value) : (Object) Boolean.valueOf(value));
            }
            events[place] = row;
        }
    }

    /** The query with each of its intervals a thousand times as long. */
    private static String scaled(String query) {
        return SECONDS.matcher(query).replaceAll(interval -> {
            Duration length = Duration.ofMillis(Math.round(Double.parseDouble(interval.group(1)) * 1e6));
            // No unit has more than three digits in Flink.
            return String.format("INTERVAL '%d %02d:%02d:%02d.%03d' DAY TO SECOND(3)", length.toDaysPart(), length.toHoursPart(),
                length.toMinutesPart(), length.toSecondsPart(), length.toMillisPart());
        });
    }

    /** One job over all passes. */
    private static void run(String query, long latenessUs, int warm, int timed) throws Exception {
        found.clear();
        timedFrom = warm * events.length;
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.createLocalEnvironment(1);
        environment.setRuntimeMode(RuntimeExecutionMode.STREAMING);
        environment.getConfig().enableObjectReuse();
        StreamTableEnvironment tables = StreamTableEnvironment.create(environment);

        long count = (long) events.length * (warm + timed);
        DataGeneratorSource<RowData> source =
            new DataGeneratorSource<>(new Replay(), count, RateLimiterStrategy.noOp(), InternalTypeInfo.of(rowType()));
        WatermarkStrategy<RowData> watermarks =
            WatermarkStrategy.<RowData>forGenerator(context -> new Steady(latenessUs)).withTimestampAssigner(context -> new Clock());
        Schema.Builder schema = Schema.newBuilder();
        for (String column : TEXTS) {
            schema.column(column, DataTypes.STRING());
        }
        for (String column : FLAGS) {
            schema.column(column, DataTypes.BOOLEAN());
        }
        schema.columnByMetadata("ts", DataTypes.TIMESTAMP_LTZ(3), "rowtime").watermark("ts", "SOURCE_WATERMARK()");
        tables.createTemporaryView("events", environment.fromSource(source, watermarks, "log"), schema.build());
        tables.toDataStream(tables.sqlQuery(query)).map(new Keep()).sinkTo(new DiscardingSink<>());
        environment.execute("bench");
    }

    private static RowType rowType() {
        LogicalType[] types = new LogicalType[TEXTS.length + FLAGS.length];
        String[] names = new String[types.length];
        for (int column = 0; column < types.length; column++) {
            boolean isText = column < TEXTS.length;
            types[column] = isText ? VarCharType.STRING_TYPE : new BooleanType();
            names[column] = isText ? TEXTS[column] : FLAGS[column - TEXTS.length];
        }
        return RowType.of(types, names);
    }

    /** The clock, and what all threads of this process have had of a processor. */
    private static final class Moment {
        private static final OperatingSystemMXBean SYSTEM = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        private final long clockNs = System.nanoTime();
        private final long processorNs = SYSTEM.getProcessCpuTime();
    }

    /** The log again and again; the clock starts with the first event of the first timed pass. */
    private static final class Replay implements GeneratorFunction<Long, RowData> {
        @Override
        public RowData map(Long index) {
            if (index == timedFrom) {
                began = new Moment();
            }
            return events[(int) (index % events.length)];
        }
    }

    /** The time of the events, which come in the order of the log, each pass later than the one before. */
    private static final class Clock implements TimestampAssigner<RowData> {
        private long given;

        @Override
        public long extractTimestamp(RowData event, long unused) {
            // Not from zero: OVER takes what is not after it for late.
            long pass = 1 + given / events.length;
            return times[(int) (given++ % events.length)] + pass * passUs();
        }
    }

    private static long passUs() {
        return times[times.length - 1] + PAUSE_US;
    }

    /** A watermark after so many events: what comes is at most so late. */
    private static final class Steady implements WatermarkGenerator<RowData> {
        private final long latenessUs;
        private long newest = Long.MIN_VALUE;
        private int since;

        Steady(long latenessUs) {
            this.latenessUs = latenessUs;
        }

        @Override
        public void onEvent(RowData event, long timestamp, WatermarkOutput output) {
            newest = Math.max(newest, timestamp);
            if (++since == EVENTS_OF_A_WATERMARK) {
                since = 0;
                output.emitWatermark(new Watermark(newest - latenessUs - 1));
            }
        }

        @Override
        public void onPeriodicEmit(WatermarkOutput output) {}
    }

    /** Takes down each alert; when there are no more of them, the clock stops. */
    private static final class Keep extends RichMapFunction<Row, Row> {
        @Override
        public Row map(Row alert) {
            StringBuilder text = new StringBuilder("[");
            for (int field = 0; field < alert.getArity(); field++) {
                text.append(field == 0 ? "\"" : ",\"").append(alert.getField(field)).append('"');
            }
            found.add(text.append(']').toString());
            return alert;
        }

        @Override
        public void close() {
            ended = new Moment();
        }
    }
}
