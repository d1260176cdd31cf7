import java.io.InputStream;
import java.util.Enumeration;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** Reads every entry of a zip and prints how many there are and how many bytes they have. */
class Zip {
    public static void main(String[] arguments) throws Exception {
        byte[] buffer = new byte[1 << 20];
        long entries = 0;
        long bytes = 0;
        try (ZipFile zip = new ZipFile(arguments[0])) {
            for (Enumeration<? extends ZipEntry> all = zip.entries(); all.hasMoreElements(); entries++) {
                ZipEntry entry = all.nextElement();
                CRC32 crc = new CRC32();
                long size = 0;
                try (InputStream content = zip.getInputStream(entry)) {
                    for (int read; (read = content.read(buffer)) >= 0; size += read) {
                        crc.update(buffer, 0, read);
                    }
                }
                if (size != entry.getSize() || crc.getValue() != entry.getCrc()) {
                    throw new IllegalStateException(entry + " is damaged");
                }
                bytes += size;
            }
        }
        System.out.println(entries + " " + bytes);
    }
}
